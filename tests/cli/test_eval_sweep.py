"""`eval sweep` through the command: cells against `eval calc` and the library, resuming, two processes, refusals."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_calls import noise, refused
from fake_sweep import write_png
from PIL import Image
from tiny_pipeline import save_tiny_pipeline
from torch import Tensor

from diffdistill.cli.main import main
from diffdistill.comparison import generated
from diffdistill.data.emoji import STYLES, load_emoji
from diffdistill.data.in_memory import InMemory
from diffdistill.evaluation import reference
from diffdistill.evaluation.agreement.scores import agreement
from diffdistill.evaluation.features.mobilenet import MobileNetFeatures, _packaged_weights
from diffdistill.evaluation.page.record import read_strip, read_sweep
from diffdistill.evaluation.quick import quick_numbers
from diffdistill.evaluation.sweep import cells
from diffdistill.evaluation.sweep.cells import Watched, side_by_side
from diffdistill.models.generate import generate

ROOT = Path(__file__).parents[2]
weights = _packaged_weights()
pytestmark = pytest.mark.skipif(weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing")

CONCEPTS, HELD_OUT, PICTURES = 14, 2, 8
SWEEP = ("sweep", "--reference", "emoji", "--pictures", str(PICTURES), "--out", "out")
SMALL = (*SWEEP, "--models", "model", "--students", "fast=model", "--steps", "1", "2", "--guidance", "3", "--seeds")


class Stub:
    """Towers one can follow: mean colour, and letters of the caption."""

    name, dim, kind, key = "stub", 3, "align", "(stub)"

    def __init__(self, device: Any = "cpu") -> None:
        self.protocol = {"extractor": "stub", "quantisation": "uint8-round"}

    def __call__(self, images: Tensor, batch_size: int = 64, progress: bool = False) -> Tensor:
        return torch.nn.functional.normalize(images.float().mean((2, 3)) + 1, dim=1)

    def text(self, captions: list[str]) -> Tensor:
        rows = torch.tensor([[float(c.count(letter)) for letter in "adx"] for c in captions])
        return torch.nn.functional.normalize(rows + 0.1, dim=1)


def align_module() -> types.ModuleType:
    module = types.ModuleType("diffdistill.evaluation.agreement.align")
    module.AlignFeatures = Stub  # type: ignore[attr-defined]
    return module


def save_tiny_emoji(folder: Path) -> None:
    """Blobs of colour, of which the last two concepts are held out."""
    folder.mkdir()
    names = [f"thing {chr(97 + i)}" for i in range(CONCEPTS)]
    (folder / "concepts.tsv").write_text("".join(f"{i:x}\t{name}\n" for i, name in enumerate(names)))
    (folder / "heldout.txt").write_text("\n".join(names[-HELD_OUT:]))
    for seed, style in enumerate(STYLES):
        small = np.random.default_rng(seed).integers(0, 256, (4, 4 * CONCEPTS, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64 * CONCEPTS, 64)).save(folder / f"{style}.webp", lossless=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "diffdistill.evaluation.agreement.align", align_module())
    save_tiny_emoji(tmp_path / "emoji")
    save_tiny_pipeline(tmp_path / "model")
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Steps, guidance and first seed of noise of every batch a cell makes."""
    calls: list[tuple[int, float, int]] = []

    def counted(model: Any, prompts: Any, steps: int, guidance: float, **options: Any) -> Any:
        calls.append((steps, guidance, options["seeds"][0]))
        return generate(model, prompts, steps, guidance, **options)

    monkeypatch.setattr(generated, "generate", counted)
    return calls


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    capsys.readouterr()
    assert main(["eval", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def record(out: str = "out", timed: bool = True) -> dict:
    found = json.loads(Path(out, "sweep.json").read_text())
    if not timed:
        for row in (*found["rows"], found["floor"]):
            for numbers in (*row["seeds"].values(), row["mean"], row["sd"]):
                numbers.pop("seconds_per_image", None)
    return found


def row_of(found: dict, generator: str, steps: int, guidance: float) -> dict:
    (row,) = [r for r in found["rows"] if (r["generator"], r["steps"], r["guidance"]) == (generator, steps, guidance)]
    return row


def drawn(seed: int) -> list[int]:
    return torch.randperm(24, generator=torch.Generator().manual_seed(seed)).tolist()


def test_cells_are_what_calc_and_the_library_say(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_network_passes_are_counted_and_seconds_are_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Identity()

    class Made(InMemory):
        def read_many(self, indices: Any) -> list[Tensor]:  # a chunk filled up to 4, two passes each, both halves
            for _ in range(2):
                network(torch.zeros(8, 1))
            return super().read_many(indices)

    clock = iter([0.0, 8.0, 10.0, 10.4, 20.0, 20.8])  # a slow chunk, as when something else runs, and two others
    monkeypatch.setattr(cells.time, "perf_counter", lambda: next(clock))
    pictures = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 2, 2)
    source = Watched(Made(pictures, ["a"] * 10, "made"), 3, 4, network)
    assert [int(p[0, 0, 0]) for p in source.read_many(range(10))] == list(range(10))
    assert source.seconds_per_image() == pytest.approx(0.8 / 4) and source.nfe() == 4
    network(torch.zeros(8, 1))  # outside, uncounted
    assert source.nfe() == 4 and not network._forward_pre_hooks


@pytest.mark.parametrize("sizes", [[(500, 200), (64, 64)], [(40, 20), (32, 32)], [(3000, 1)]])
def test_pictures_of_any_size_are_fitted_to_squares_of_one_side(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    images = [torch.full((3, h, w), 10, dtype=torch.uint8) for h, w in sizes]
    panel = side_by_side(images)
    side = min(128, max(map(max, sizes)))
    assert panel.shape == (3, side, side * len(sizes))
    for (h, w), square in zip(sizes, panel.split(side, 2), strict=True):
        scale = min(1, side / max(h, w))
        dark = (square[0] == 10).nonzero()
        extent = (dark.max(0).values - dark.min(0).values + 1).tolist()
        assert extent == [max(1, round(h * scale)), max(1, round(w * scale))]  # not stretched, not enlarged
        assert (square[0] == 255).sum() == side * side - len(dark)
    write_png(tmp_path / "strip.png", panel.permute(1, 2, 0).numpy())
    read_strip(tmp_path, "strip.png", len(sizes))


def test_strips_and_nearest_are_the_first_seeds_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_an_interrupted_sweep_goes_on_where_it_was(
    here: Path, capsys: pytest.CaptureFixture[str], made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SMALL, "0", "1", "--metrics", "kd", "--agreement", "none")
    said(capsys, *command)
    cells = [(1, 1.0, 0), (1, 3.0, 0), (2, 1.0, 0), (2, 3.0, 0)]
    assert made == cells + [(*how[:2], 1_000_000) for how in cells]  # seed by seed, cheap ones first
    whole = record(timed=False)

    made.clear()
    assert said(capsys, *command)["made"] == 0 and made == []
    assert record(timed=False) == whole

    other = [*command]
    other[other.index("out")] = "again"
    count, counted = [0], generated.generate

    def interrupted(*args: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return counted(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generated, "generate", interrupted)
        assert main(["eval", *other]) == 130
    part = record("again")
    assert not part["complete"] and read_sweep("again").floor is not None
    assert [row["steps"] for row in part["rows"]] == [1, 1, 2]
    made.clear()
    assert said(capsys, *other)["made"] == 6  # one generator's cell of seed 0, and seed 1 with its floor
    assert made == [(2, 3.0, 0)] + [(*how[:2], 1_000_000) for how in cells]
    assert record("again", timed=False) == whole

    def cell(steps: int, guidance: float, seed: int) -> Path:
        of = {f: json.loads(f.read_text())["made_from"] for f in Path("out/cells").glob("*.json")}
        wanted = (steps, guidance, seed)
        (file,) = (f for f, m in of.items() if (m.get("steps"), m.get("guidance"), m["seed"]) == wanted)
        return file

    broken, removed, spoilt = cell(1, 1.0, 1), cell(2, 1.0, 1), cell(2, 3.0, 0)
    broken.write_text(broken.read_text()[:-40])
    removed.unlink()
    spoilt.with_name(f"{spoilt.stem}-strip.png").write_bytes(b"no picture")
    made.clear()
    assert said(capsys, *command)["made"] == 3
    assert made == [(2, 3.0, 0), (1, 1.0, 1_000_000), (2, 1.0, 1_000_000)]
    assert record(timed=False) == whole
    made.clear()
    assert said(capsys, *command, "--pictures", "6")["made"] == 10  # other cells; the old ones stay
    assert said(capsys, *command)["made"] == 0


def test_seeds_put_in_another_order_keep_what_is_there(
    here: Path, capsys: pytest.CaptureFixture[str], made: list
) -> None:
    command = (*SWEEP, "--models", "model", "--steps", "1", "--guidance", "1", "--agreement", "none", "--seeds")
    said(capsys, *command, "0", "1")
    made.clear()
    said(capsys, *command, "1", "2")
    assert made == [(1, 1.0, 1_000_000), (1, 1.0, 2_000_000)]  # seed 1 again, now that its pictures are shown
    made.clear()
    said(capsys, *command, "0", "1", "2")
    assert made == [] and record()["samples"]["seed"] == 0


def test_two_processes_equal_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.py").write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'tests' / 'cli')!r}, {str(ROOT / 'tests')!r}]\n"
        "import test_eval_sweep\n"
        "sys.modules['diffdistill.evaluation.agreement.align'] = test_eval_sweep.align_module()\n"
        "from diffdistill.cli.eval import main\nfrom diffdistill.cli.main import guard\n"
        "sys.exit(guard(lambda: main(sys.argv[1:])))\n"
    )
    options = [*SWEEP[:-1], "out1", "--models", "model", "--steps", "2", "--guidance", "3", "--seeds", "0", "1"]
    options += ["--agreement_pictures", "5", "--batch_size"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have: kernels round differently at other numbers
    try:
        said(capsys, *options, "64")
    finally:
        torch.set_num_threads(threads)
    two_of = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py"]
    options[options.index("out1")] = "out2"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*two_of, *options, "3"], check=True, env=environment, capture_output=True)
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
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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


def test_pictures_of_other_sizes_are_reportable(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_corrupt_pictures_are_not_counted_and_too_few_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise("real", 9, 0)
    noise("other", 7, 1)
    Path("prompts.txt").write_text("red apple\n")
    Path("real/03.png").write_bytes(b"no picture")
    options = ("sweep", "--students", "model", "--prompts", "prompts.txt", "--pictures", "7", "--steps", "1")
    options = (*options, "--agreement", "none", "--reference", "real", "--on_corrupt", "skip")
    said(capsys, *options, "--seeds", "0", "--out", "out")
    assert record()["reference"]["n"] == 8
    said(capsys, *options, "--seeds", "0", "--out", "out")  # from the cells alone
    assert record()["reference"]["n"] == 8
    Path("other/03.png").write_bytes(b"no picture")
    line = refused(capsys, *options, "--real", "other", "--out", "out2")
    assert "--real other holds 7 pictures, of which 6 could be read; a cell has 7" in line


def test_the_same_pictures_are_no_floor_by_whatever_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise("real", 8, 0)
    shutil.copytree("real", "copy")
    Path("renamed").mkdir()
    for i in range(8):
        shutil.copy(f"real/{i:02d}.png", f"renamed/x{i:02d}.png")
    said(capsys, "ref", "--images", "real", "--out", "ref.safetensors")
    shutil.copy("ref.safetensors", "other.safetensors")
    Path("prompts.txt").write_text("red apple\n")
    options = ("sweep", "--students", "model", "--prompts", "prompts.txt", "--pictures", "7", "--agreement", "none")
    for against, real in (
        ("real", "real"), ("real", "copy"), ("real", "renamed"), ("real", "ref.safetensors"),
        ("ref.safetensors", "other.safetensors"),
    ):  # fmt: skip
        line = refused(capsys, *options, "--reference", against, "--real", real, "--out", "out")
        assert f"--real {real} is the reference itself" in line


def test_what_a_report_could_not_show_is_refused_before_the_work(
    here: Path, capsys: pytest.CaptureFixture[str], made: list
) -> None:
    whole = [str(i) for i in range(1, 66)]
    Path("long.txt").write_text("a" * 10_001)
    Path("half.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a \\ud800 dog"}\n')
    models = (*SWEEP, "--models", "model")
    for argv, says in (
        ((*models, "--seeds", *whole), "these are 65 seeds; a report shows at most 64"),
        ((*models, "--steps", *whole, "--guidance", *whole), "these are 4225 rows; a report shows at most 1000"),
        ((*SWEEP, "--students", *(f"n{i}=model" for i in whole)), "these are 65 generators; a report shows at most 32"),
        ((*SWEEP, "--models", f"{'a' * 101}=model"), "in at most 100 characters"),
        ((*models, "--prompts", "long.txt"), "a prompt has 10001 characters; a report shows at most 10000"),
        ((*models, "--prompts", "half.jsonl"), r"half.jsonl, line 2 has '\ud800' in it, half of a character"),
    ):
        assert says in refused(capsys, *argv)
    assert made == [] and not Path("out").exists()


def test_another_torch_is_another_cell(
    here: Path, capsys: pytest.CaptureFixture[str], made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SWEEP, "--models", "model", "--steps", "1", "--guidance", "1", "--agreement", "none", "--seeds", "0")
    said(capsys, *command)
    major, minor, patch = torch.__version__.split("+")[0].split(".")[:3]
    monkeypatch.setattr(torch, "__version__", f"{major}.{minor}.{int(patch) + 1}")
    assert said(capsys, *command)["made"] == 0
    monkeypatch.setattr(torch, "__version__", f"{major}.{int(minor) + 1}.0")
    assert said(capsys, *command)["made"] == 2


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], made: list) -> None:
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("no sweep")
    Path("file").write_text("")
    Path("prompts.txt").write_text("red apple\n")
    models = (*SWEEP, "--models", "model")
    for argv, says in (
        (SWEEP, "there is nothing to measure; name --models, --students or both"),
        ((*models, "--metrics", "fid"), "unknown metric 'fid'"),
        ((*models, "--steps", "0"), "--steps has 0; each must be at least 1"),
        ((*models, "--steps", "1001"), "model: steps is 1001; this pipeline's schedule allows 1 to 1000"),
        ((*models, "--guidance", "0.5"), "--guidance has 0.5; each must be from 1 to 1e+06"),
        ((*models, "--guidance", "nan"), "--guidance has nan"),
        ((*models, "--seeds", "-1"), "--seeds has -1"),
        ((*models, "--students", "model"), "two generators are called 'model'; name them as in model-2=PATH"),
        ((*models, "--students", "a/b=model"), "gives a generator the name 'a/b'"),
        ((*SWEEP, "--models", "./nowhere"), "no teacher at ./nowhere"),
        ((*models, "--pictures", "20"), "the set has 24, of which 6 must stay as reference"),
        ((*models, "--pictures", "5"), "prdc needs at least 6 pictures"),
        ((*models, "--agreement_pictures", "1"), "it must be at least 2"),
        ((*models, "--agreement", "clip"), "names no CLIP"),
        ((*models, "--clip_prefix", "a "), "--clip_prefix needs --agreement clip"),
        ((*models, "--reference", "notes"), "--reference notes is no emoji set"),
        ((*models, "--real", "emoji"), "--real goes with --prompts"),
        ((*models, "--prompts", "prompts.txt", "--real", "emoji"), "--real emoji is the reference itself"),
        ((*models, "--prompts", "nothing.txt"), "there is no prompt file nothing.txt"),
        ((*models, "--out", "file"), "--out file is a file; name a folder"),
        ((*models, "--out", "notes"), "--out notes holds something that is no sweep"),
        ((*models, "--step", "2"), "unknown option --step"),
    ):
        capsys.readouterr()
        assert main(["eval", *argv]) == 2, argv
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err
        assert says in captured.err
    assert made == [] and not Path("out").exists()


@pytest.mark.parametrize("steps", [("1", "10"), ("10", "2"), ("19", "3", "10")])
@pytest.mark.parametrize("named", [("--models", "model"), ("--students", "model")])
def test_each_number_of_steps_is_tried_before_the_first_picture(
    capsys: pytest.CaptureFixture[str],
    here: Path,
    made: list[tuple[int, float, int]],
    steps: tuple[str, ...],
    named: tuple[str, str],
) -> None:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(here / "model")
    few = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 20}
    pipeline.scheduler = diffusers.PNDMScheduler(**few, steps_offset=1)  # takes no fewer than four
    pipeline.save_pretrained(here / "model")
    options = (*SWEEP, *named, "--steps", *steps, "--guidance", "3", "--agreement", "none", "--seeds", "0")
    line = refused(capsys, *options)
    assert f"model: steps is {min(map(int, steps))}, and PNDMScheduler" in line
    assert made == [] and not (here / "out").exists()
