"""`eval sweep` through the command: its cells against `eval calc` and the library, and two processes against one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from eval_calls import in_two, one_thread, said
from PIL import Image
from sweep_calls import PICTURES, SMALL, SWEEP, Stub, align_module, drawn, needs_mobilenet, record, row_of

from diffdistill.comparison import generated
from diffdistill.data.emoji import load_emoji
from diffdistill.evaluation import reference
from diffdistill.evaluation.agreement.scores import agreement
from diffdistill.evaluation.features.mobilenet import MobileNetFeatures
from diffdistill.evaluation.page.read import read_sweep
from diffdistill.evaluation.page.strips import read_strip
from diffdistill.evaluation.quick import quick_numbers
from diffdistill.models.generate import generate

ROOT = Path(__file__).parents[2]
pytestmark = needs_mobilenet


def test_cells_are_what_calc_and_the_library_say(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said_ = said(capsys, *SMALL, "0", "1", "--agreement_pictures", "5")
    assert said_ == {"sweep": "out/sweep.json", "cells": 10, "made": 10}
    found = record()
    assert read_sweep("out").complete and found["complete"]
    assert [(r["generator"], r["steps"], r["guidance"], r["nfe"]) for r in found["rows"]] == [
        ("model", 1, 3.0, 2),
        ("model", 2, 3.0, 4),
        ("fast", 1, 1.0, 1),
        ("fast", 2, 1.0, 2),
    ]
    row = row_of(found, "model", 2, 3.0)

    emoji, order = load_emoji("emoji"), drawn(1)
    Path("prompts.txt").write_text("".join(f"{emoji.captions[i]}\n" for i in order[:PICTURES]))
    Path("rest").mkdir()
    for i in order[PICTURES:]:
        Image.fromarray(emoji.images[i].permute(1, 2, 0).numpy()).save(f"rest/{i:02d}.png")
    sampler = ("--steps", "2", "--guidance", "3", "--seed", "1000000", "--prompts", "prompts.txt", "--model", "model")
    calc = said(capsys, "calc", *sampler, "--reference", "rest", "--metrics", "fd", "kd", "prdc")
    for key in ("fd", "kd", "kd_se", "precision", "recall", "density", "coverage"):
        assert row["seeds"]["1"][key] == pytest.approx(calc[key], rel=1e-6, abs=1e-9), key
        values = [row["seeds"][seed][key] for seed in "01"]
        assert row["mean"][key] == pytest.approx(np.mean(values)) and row["sd"][key] == pytest.approx(
            np.std(values, ddof=1)
        )

    prompts = [emoji.captions[i] for i in order[:PICTURES]]
    pictures = torch.cat(list(generate("model", prompts, 2, 3.0, 1_000_000)))
    levels = (pictures * 255).round().byte()
    stub = Stub()
    expected = agreement(stub(levels[:5]), stub.text(prompts[:5]), prompts[:5])
    assert found["agreement_metric"] == "align_score" and found["agreement"]["key"] == "(stub)"
    assert row["seeds"]["1"]["align_score"] == pytest.approx(expected.score, rel=1e-5)
    assert row["seeds"]["1"]["align_r1"] == pytest.approx(expected.r1)

    extract = MobileNetFeatures()
    real = extract(emoji.images[order])
    floor = quick_numbers(real[:PICTURES], real[PICTURES:])
    assert found["floor"]["seeds"]["1"]["kd"] == pytest.approx(floor["kd"], rel=1e-9, abs=1e-12)
    assert found["reference"] == {"source": "emoji", "n": 16}
    assert found["timing"] == {"pictures_at_a_time": 16, "on": [{"threads": torch.get_num_threads(), "device": "cpu"}]}
    assert row["seeds"]["1"]["align_captions"] == 5

    held = load_emoji("emoji", "heldout")
    assert len(held) == 4  # all there are, fewer than a cell's five
    expected = agreement(stub(held.images), stub.text(held.captions), held.captions)
    unseen = found["floor"]["unseen"]
    assert unseen["align_score"] == pytest.approx(expected.score, rel=1e-6)
    assert (unseen["align_r1"], unseen["align_captions"], unseen["n"]) == (pytest.approx(expected.r1), 4, 4)
    own = emoji.subset(order[:5])
    expected = agreement(stub(own.images), stub.text(own.captions), own.captions)
    assert found["floor"]["seeds"]["1"]["align_score"] == pytest.approx(expected.score, rel=1e-6)
    assert found["floor"]["sd"]["nearest_median"] is None and found["floor"]["sd"]["kd"] > 0
    assert (found["prompts_of"], found["nearest_of"]) == ("training", "training")


def test_strips_and_nearest_are_the_first_seeds_pictures(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, *SMALL, "3", "4")
    found, emoji, extract = record(), load_emoji("emoji"), MobileNetFeatures()
    row = row_of(found, "fast", 2, 1.0)
    prompts = [emoji.captions[i] for i in drawn(3)[:PICTURES]]
    assert found["samples"] == {"prompts": prompts, "seed": 3}
    pictures = (torch.cat(list(generate("model", prompts, 2, 1.0, 3_000_000))) * 255).round().byte()
    strip = np.asarray(Image.open(f"out/{row['strip']}"))
    assert np.abs(strip.astype(int) - torch.cat(list(pictures), 2).permute(1, 2, 0).numpy()).max() <= 1

    far = torch.cdist(extract(pictures).double(), extract(emoji.images).double()).min(1).values
    assert row["nearest_distances"] == pytest.approx(far.tolist(), rel=1e-3)
    assert row["seeds"]["3"]["nearest_median"] == pytest.approx(float(np.median(far)), rel=1e-3)
    for entry in (*found["rows"], found["floor"]):
        shown = len(entry["nearest_distances"])
        read_strip(Path("out"), entry["strip"], PICTURES)
        read_strip(Path("out"), entry["nearest"], shown, rows=2)
    unseen = extract(load_emoji("emoji", "heldout").images).double()
    honest = torch.cdist(unseen, extract(emoji.images).double()).min(1).values
    assert found["floor"]["mean"]["nearest_median"] == pytest.approx(float(np.median(honest)), rel=1e-6)
    own = np.asarray(Image.open("out/strips/real.png"))
    assert np.array_equal(own[:, :64], emoji.images[drawn(3)[0]].permute(1, 2, 0).numpy())


def test_two_processes_equal_one(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SWEEP[:-1], "out1", "--models", "model", "--steps", "2", "--guidance", "3", "--seeds", "0", "1"]
    options += ["--agreement_pictures", "5", "--batch_size"]
    with one_thread():
        said(capsys, *options, "64")
    options[options.index("out1")] = "out2"
    in_two([*options, "3"], align_module)
    found = [record(out, timed=False) for out in ("out1", "out2")]
    one, two = found
    for ours, theirs in zip((*one["rows"], one["floor"]), (*two["rows"], two["floor"]), strict=True):
        for seed in "01":
            assert theirs["seeds"][seed] == pytest.approx(ours["seeds"][seed], rel=1e-9, abs=1e-12)
        assert theirs["nearest_distances"] == pytest.approx(ours["nearest_distances"], rel=1e-9)
    for place in ("strips", "nearest"):
        for file in sorted(Path("out1", place).glob("*.png")):
            assert file.read_bytes() == Path("out2", place, file.name).read_bytes()


def test_a_generator_that_has_learned_by_heart_is_exposed(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SWEEP, "--models", "model", "--steps", "1", "--guidance", "1", "--agreement", "none", "--seeds", "0")
    said(capsys, *command)
    assert row_of(record(), "model", 1, 1.0)["mean"]["nearest_median"] > 0.1
    images = load_emoji("emoji").images.float() / 255
    monkeypatch.setattr(generated.Generated, "read_many", lambda self, indices: [images[i] for i in indices])
    said(capsys, *command, "--pictures", "7")
    row = row_of(record(), "model", 1, 1.0)
    assert row["mean"]["nearest_median"] == 0 and row["nearest_distances"] == [0.0] * 7
    assert record()["floor"]["mean"]["nearest_median"] > 0.1
    panel = np.asarray(Image.open(f"out/{row['nearest']}"))
    assert np.array_equal(panel[:64], panel[64:])


def test_prompts_and_a_reference_of_ones_own(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    for name, n in (("real", 9), ("other", 10)):
        Path(name).mkdir()
        for i in range(n):
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f"{name}/{i}.png")
    Path("prompts.txt").write_text("red apple\nblue car\ngreen pear\n")
    said(capsys, "ref", "--images", "real", "--out", "ref.safetensors")
    sampler = ("--prompts", "prompts.txt", "--pictures", "7")
    options = (*sampler, "--students", "model", "--steps", "2", "--seeds", "0", "1")
    calc = said(capsys, "calc", "--model", "model", *sampler, "--steps", "2", "--reference", "real")
    for source, floor in (("real", "other"), ("ref.safetensors", None)):
        extra = ("--real", floor) if floor else ()
        said(capsys, "sweep", *options, "--reference", source, *extra, "--out", f"out-{source}")
        found = record(f"out-{source}")
        assert read_sweep(f"out-{source}").complete and found["reference"] == {"source": source, "n": 9}
        (row,) = found["rows"]
        assert row["seeds"]["0"]["kd"] == pytest.approx(calc["kd"], rel=1e-9)
        assert found["samples"]["prompts"][:4] == ["red apple", "blue car", "green pear", "red apple"]
        if floor is None:
            assert found["floor"] is None and row["nearest"] is None and "nearest_median" not in row["mean"]
            assert found["prompts_of"] == "file"
        else:
            assert row["nearest"] is not None and len(row["nearest_distances"]) == 7
            assert found["floor"]["strip"] is None and "align_score" not in found["floor"]["mean"]
            assert found["floor"]["sd"]["kd"] > 0  # each seed draws
            assert found["nearest_of"] == "reference" and found["floor"]["unseen"] is None
            pictures = found["floor"]

    said(capsys, "ref", "--images", "other", "--out", "other.safetensors")
    out = ("--out", "out-features")
    said(capsys, "sweep", *options, "--reference", "ref.safetensors", "--real", "other.safetensors", *out)
    features = record("out-features")["floor"]
    for seed in "01":
        assert features["seeds"][seed]["kd"] == pytest.approx(pictures["seeds"][seed]["kd"], rel=1e-9)
    loads, load = [], reference.load_features
    monkeypatch.setattr(reference, "load_features", lambda path: loads.append(path) or load(path))
    said(capsys, "sweep", *options, "--reference", "ref.safetensors", "--out", "out-once")
    assert len(loads) == 1


def test_pictures_of_other_sizes_are_reportable(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    Path("real").mkdir()
    for i in range(8):
        Image.fromarray(draw.integers(0, 256, (8, 200, 3), dtype=np.uint8)).save(f"real/{i}.png")
    Path("prompts.txt").write_text("red apple\n")
    options = ("--prompts", "prompts.txt", "--pictures", "6", "--steps", "1", "--agreement", "none", "--seeds", "0")
    said(capsys, "sweep", "--students", "model", *options, "--reference", "real", "--out", "out")
    (row,) = record()["rows"]
    assert Image.open(f"out/{row['nearest']}").size == (6 * 128, 2 * 128)
    said(capsys, "report", "--sweep", "out")
