"""`eval compare`: its numbers against the library, a comparison that goes on, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_calls import refused, said
from PIL import Image
from sweep_calls import needs_mobilenet

from diffdistill.cli.main import main
from diffdistill.comparison import compare
from diffdistill.data.captioned import load_split
from diffdistill.evaluation import diversity, kernel_distance
from diffdistill.evaluation.battery.encoders import build_encoder
from diffdistill.evaluation.distances.vendi import vendi_within
from diffdistill.models.generate import generate

pytestmark = needs_mobilenet
COMPARE = (
    "compare", "--reference", "emoji", "--teacher", "model", "--teacher_steps", "2", "--teacher_guidance", "2",
    "--students", "fast=model", "--pictures", "6", "--captions", "2", "--per_caption", "3", "--seeds", "0", "1",
    "--tuning", "mobilenet_v2", "--judging", "st-alexnet", "--out", "out",
)  # fmt: skip


def record() -> dict:
    return json.loads(Path("out/compare.json").read_text())


def test_numbers_are_those_of_the_library(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = said(capsys, *COMPARE)
    found = record()
    teacher, student = found["rows"]
    assert [row["name"] for row in short["rows"]] == ["model", "fast"] and short["page"] == "out/index.html"
    assert (teacher["nfe"], student["nfe"]) == (4, 1) and student["seeds"] == [0, 1]
    for kind in ("all", "tuning", "judging"):
        assert teacher["summary"][kind]["kd"] == [1, 0] and teacher["summary"][kind]["variety"] == [1, 0]
    emoji = load_split("emoji", "train")
    order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(1)).tolist()
    prompts, real = [emoji.captions[i] for i in order[:6]], emoji.images[order[6:]]
    images = torch.cat(list(generate("model", prompts, 1, 1.0, 1_000_000, 16)))
    captions = list(dict.fromkeys(emoji.captions[i] for i in order))[:2]
    repeated = [caption for caption in captions for _ in range(3)]
    many = torch.cat(list(generate("model", repeated, 1, 1.0, 1_500_000, 16)))
    cells = [json.loads(path.read_text()) for path in Path("out/cells").glob("*.json")]
    (cell,) = [c for c in cells if c["made_from"]["seed"] == 1 and c["made_from"]["guidance"] == 1]
    for name in ("mobilenet_v2", "st-alexnet"):
        encoder, numbers = build_encoder(name), cell["numbers"][name]
        kd, _ = kernel_distance(encoder(images), encoder(real))
        assert numbers["kd"] == pytest.approx(kd, rel=1e-4)
        assert numbers["variety"] == pytest.approx(diversity(encoder(many), repeated), rel=1e-4)
        assert numbers["vendi"] == pytest.approx(vendi_within(encoder(many), repeated), rel=1e-6)
    assert found["tuning"] == ["mobilenet_v2"] and found["judging"] == ["st-alexnet"]
    page = Path("out/index.html").read_text()
    assert "mobilenet_v2" in page and page.count("data:image/png") == 2


def test_a_comparison_goes_on_and_makes_a_damaged_cell_again(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    measure = compare.Comparison._measure
    monkeypatch.setattr(
        compare.Comparison, "_measure", lambda self, row, *rest: made.append(row.name) or measure(self, row, *rest)
    )
    first = said(capsys, *COMPARE)
    assert len(made) == 4
    files = sorted(Path("out/cells").glob("*.json"))
    files[0].write_text("{")
    assert said(capsys, *COMPARE) == first and len(made) == 5
    Path("prompts.txt").write_text("a b c\nd e f\n")
    Path("photos").mkdir()
    for i in range(4):  # of several sizes
        Image.fromarray(np.full((20 + i, 30, 3), 40 * i, np.uint8)).save(f"photos/{i}.png")
    shutil.rmtree("out")
    held = said(capsys, *COMPARE, "--split", "heldout")
    assert held["rows"] != first["rows"] and record()["prompts_of"] == "captions of held-out concepts of emoji"
    shutil.rmtree("out")
    said(capsys, *COMPARE, "--prompts", "prompts.txt", "--reference", "photos")
    assert record()["prompts_of"] == "the prompts of prompts.txt"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--students", "model"), "two generators are called 'model'"),
        (("--steps", "0"), "--steps has 0"),
        (("--per_caption", "1"), "--per_caption is 1"),
        (("--pictures", "2"), "--pictures is 2"),
        (("--seeds", "5000"), "--seeds"),
        (("--captions", "99"), "--captions is 99"),
        (("--pictures", "24"), "--pictures is 24; the set has 24 images"),
        (("--judging", "mobilenet_v2"), "named twice"),
        (("--judging", "mobilnet"), "did you mean 'mobilenet_v2'"),
        (("--judging", "clip-vitb16"), "did you mean 'clip-vit-b16'"),
        (("--teacher_guidance", "0.5"), "--teacher_guidance is 0.5"),
        (("--reference", "nothing"), "no emoji set"),
        (("--split", "heldout", "--prompts", "p.txt"), "--split"),
        (("--students", "a=nothing"), "nothing"),
        (("--out", "model"), "holds something"),
    ],
)
def test_refusals(sweep_folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str) -> None:
    assert says in refused(capsys, *COMPARE, *options)
    assert not Path("out").exists()


def test_help_names_the_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "compare", "--help"])
    assert "clip-vit-b16" in capsys.readouterr().out
