"""`eval probe`: maps of a pipeline, of a student and of a run's fake score, on labelled images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_calls import refused, said
from made import made
from safetensors.torch import load_file, save_file
from tiny_pictures import save_tiny_pictures
from tiny_pipeline import save_tiny_pipeline

from diffdistill.cli.main import main
from diffdistill.comparison import probe_map
from diffdistill.comparison.probed import open_probed, tap_features
from diffdistill.data.labelled import load_labelled
from diffdistill.methods import SelfE

TAPS = ["down.0", "down.1", "mid", "up.0", "up.1"]
PROBE = (
    "probe",
    "--images",
    "pictures.npz",
    "--labels",
    "labels.csv::label",
    "--target",
    "none",
    "--noise",
    "0.1",
    "1",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of 8 pixels in two classes, dark and light, and a tiny pipeline."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    light = np.arange(60) % 2
    pixels = draw.integers(0, 60, (60, 8, 8, 3)) + 180 * light[:, None, None, None]
    np.savez("pictures.npz", pixels.astype(np.uint8))
    Path("labels.csv").write_text("label\n" + "".join(("light\n" if each else "dark\n") for each in light))
    save_tiny_pipeline(tmp_path / "model")
    return tmp_path


def test_a_map_separates_dark_from_light_and_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = said(capsys, *PROBE, "--models", "model", "--out", "out")
    record = json.loads(Path("out/probe.json").read_text())
    (model,) = record["models"]
    assert [(cell["tap"], cell["noise_ratio"]) for cell in model["cells"]] == [(t, r) for r in (0.1, 1) for t in TAPS]
    assert out["best_linear"]["model"]["linear"] == 1.0 == max(cell["linear"] for cell in model["cells"])
    assert record["settings"]["train"] == 48 and record["settings"]["test"] == 12
    page = Path("out/index.html").read_text()
    assert "100.0%" in page and "down.1" in page and "http" not in page.replace("http-equiv", "")
    monkeypatch.setattr(probe_map, "tap_features", None)  # all is stored
    said(capsys, *PROBE, "--models", "model", "--out", "out")
    assert json.loads(Path("out/probe.json").read_text()) == record
    assert "other --noise" in refused(capsys, *PROBE, "2", "--models", "model", "--out", "out")


def test_features_are_means_of_what_the_blocks_give(folder: Path) -> None:
    probed = open_probed("model")
    x0 = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    found = tap_features(probed, x0, ["mid", "up.0"], 0.5, batch_size=2)
    from diffdistill.distill import SampleRandom

    t = probed.schedule.time_at(0.5)
    noise = SampleRandom(0, range(5)).normal("probe/0", x0.shape[1:])
    x_t = probed.schedule.alpha(t).float() * x0 + probed.schedule.sigma(t).float() * noise
    seen = []
    handle = probed.taps["up.0"].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        probed.backbone(x_t, t.float().expand(5), probed.null.expand(5, -1, -1))
    handle.remove()
    assert torch.allclose(found["up.0"], seen[0].mean((2, 3)), atol=1e-5)
    assert found["mid"].shape == (5, 16)


def test_a_fake_score_and_a_student_of_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompts.txt").write_text("red apple\nblue car\n")
    main(["train", "--method", "SwiftBrush", "--method.teacher.source", "model", "--method.prompts", "prompts.txt",
          "--method.fake.network", "full", "--method.fake.warmup", "0", "--method.noise_ratio", "2.5",
          "--training.samples", "8", "--training.batch_size", "4", "--output_dir", "run"])  # fmt: skip
    capsys.readouterr()
    models = ("fake=run::fake", "student=run::student", "teacher=model", "made=run/export")
    said(capsys, *PROBE, "--taps", "mid", "--models", *models, "--out", "out")
    record = json.loads(Path("out/probe.json").read_text())
    assert [model["name"] for model in record["models"]] == ["fake", "student", "teacher", "made"]
    cells = {model["name"]: model["cells"] for model in record["models"]}
    assert len({json.dumps(each) for each in cells.values()}) == 4  # four networks
    assert all("linear" in cell for name in ("fake", "student", "teacher") for cell in cells[name])
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")  # the run's own paths are found again
    options = ["--images", "../pictures.npz", "--labels", "../labels.csv::label", "--target", "none", "--noise", "0.1"]
    said(capsys, "probe", *options, "--models", "../run::fake", "--out", "out")
    monkeypatch.chdir(folder)
    weights = folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    kept = weights.read_bytes()
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    line = refused(capsys, *PROBE, "--models", "x=run::fake", "--out", "out3")
    assert "is another one now than when the run was trained" in line
    weights.write_bytes(kept)
    assert "no network 'judge'; it has" in refused(capsys, *PROBE, "--models", "x=run::judge", "--out", "out2")
    assert "no run with a whole checkpoint" in refused(capsys, *PROBE, "--models", "x=model::fake", "--out", "out2")


def test_the_emoji_set_is_split_by_concepts() -> None:
    data = load_labelled(str(Path(__file__).parents[2] / "assets" / "emoji"))
    from diffdistill.data.emoji import load_emoji

    emoji = load_emoji(Path(__file__).parents[2] / "assets" / "emoji", "all")
    parts = [{data.images[i].numpy().tobytes() for i in rows.tolist()} for rows in (data.train, data.test)]
    assert not parts[0] & parts[1] and "animal" in data.names  # a few concepts are drawn alike
    assert len(data.train) + len(data.test) + data.left_out == len(emoji)
    assert set(data.labels[data.test].tolist()) == set(range(len(data.names)))


def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.csv").write_text("label\n" + "dark\n" * 60)
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("no map")
    for argv, says in (
        ((*PROBE, "--models", "model", "--out", "notes"), "no map of probes"),
        ((*PROBE, "--models", "nowhere", "--out", "out"), "nowhere"),
        ((*PROBE, "--models", "model", "x=model", "x=model", "--out", "out"), "two networks are called 'x'"),
        ((*PROBE, "--models", "model", "--taps", "middle", "--out", "out"), "has no tap 'middle'; its taps are"),
        ((*PROBE, "0", "--models", "model", "--out", "out"), "must be numbers above 0"),
        ((*PROBE, "--models", "model", "--labels", "one.csv::label", "--out", "out"), "1 labels have 2 images or more"),
        ((*PROBE, "--models", "model", "--size", "4", "--out", "out"), "draws images of 8 x 8 pixels"),
        ((*PROBE, "--models", "model", "--test_labels", "one.csv", "--out", "out"), "--test_labels goes with --test"),
        ((*PROBE, "--models", "model", "--test_images", "1", "--out", "out"), "as many images as there are labels"),
        ((*PROBE[:-2], "1e9", "--models", "model", "--out", "out"), "no network has any of these noise levels"),
    ):  # fmt: skip
        assert says in refused(capsys, *argv), says


def test_the_gap_is_of_the_same_images(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # an encoder that gives an image's mean brightness: the features of blocks tell it, unless rows are mixed up
    from diffdistill.cli.eval import probe

    encoder = (lambda images: images.float().mean((1, 2, 3))[:, None], "brightness")
    monkeypatch.setattr(probe, "_target", lambda o, device: encoder)
    said(capsys, *PROBE, "--models", "model", "--out", "out")
    (model,) = json.loads(Path("out/probe.json").read_text())["models"]
    assert min(cell["gap"] for cell in model["cells"]) < 0.6  # 48 images to fit on
    assert len(load_file("out/target.safetensors")["features"]) == 60


def test_an_any_step_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = str(save_tiny_pictures(folder / "set"))
    method = made(SelfE, data__source=pictures, network__autoencoder="model/vae", network__block_out_channels=(32, 32),
                  network__text_width=32, network__text_layers=1)  # fmt: skip
    method.export(folder / "any-step")
    options = ("--images", "pictures.npz", "--labels", "labels.csv::label", "--target", "none", "--size", "64")
    said(capsys, "probe", *options, "--models", "any-step", "--noise", "0.25", "--taps", "mid", "--out", "out")
    (model,) = json.loads(Path("out/probe.json").read_text())["models"]
    assert model["cells"][0]["noise_found"] == pytest.approx(0.25) and model["cells"][0]["linear"] > 0.8


def test_what_was_damaged_is_measured_again_and_other_networks_stay(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said(capsys, *PROBE, "--models", "a=model", "--out", "out")
    record = json.loads(Path("out/probe.json").read_text())
    cell = Path("out/cells/a-0.1.json")
    whole = json.loads(cell.read_text())
    damages = (
        {"cells": []},
        {"cells": "abc"},
        {"cells": whole["cells"][:1]},
        {"cells": [{**whole["cells"][0], "linear": 5e300}]},
    )
    for damage in damages:
        cell.write_text(json.dumps({**whole, **damage}))
        said(capsys, *PROBE, "--models", "a=model", "--out", "out")
        assert json.loads(Path("out/probe.json").read_text()) == record
    said(capsys, *PROBE, "--models", "b=model", "--taps", "mid", "mid", "--out", "out2")
    said(capsys, *PROBE, "--models", "b=model", "--out", "out")
    names = [model["name"] for model in json.loads(Path("out/probe.json").read_text())["models"]]
    assert names == ["a", "b"] and "<b>a</b>" in Path("out/index.html").read_text()
    save_tiny_pipeline(folder / "other", "epsilon")
    assert "another network called 'a'" in refused(capsys, *PROBE, "--models", "a=other", "--out", "out")


def test_parts_have_the_same_share_of_each_label(folder: Path) -> None:
    data = load_labelled("pictures.npz", "labels.csv::label")
    for train, test in ((24, 6), (10, 2)):
        some = data.some(train, test)
        assert some.labels[some.train].bincount().tolist() == [train // 2] * 2
        assert some.labels[some.test].bincount().tolist() == [test // 2] * 2
    pixels = np.load("pictures.npz")["arr_0"]
    np.savez("again.npz", np.concatenate([pixels[:10], 255 - pixels[:10]]))
    Path("again.csv").write_text("label\n" + "dark\nlight\n" * 10)
    twice = load_labelled("pictures.npz", "labels.csv::label", "again.npz", "again.csv::label")
    assert (
        len(twice.test) == 10 == twice.left_out
        and "10 test images have the pixels of one to fit on" in twice.why_left_out
    )
