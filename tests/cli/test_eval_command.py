"""`eval ref | calc | gen` through the command: a generator, stored pictures, one process and two, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import save_tiny_pipeline

from diffdistill.cli.main import main
from diffdistill.evaluation.features import _packaged_weights

ROOT = Path(__file__).parents[2]
weights = _packaged_weights()
pytestmark = pytest.mark.skipif(weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    Path("real").mkdir()
    for i in range(6):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f"real/{i}.png")
    Path("prompts.txt").write_text("red apple\nblue car\ngreen pear\n")
    save_tiny_pipeline(tmp_path / "model")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    capsys.readouterr()
    assert main(["eval", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["eval", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    return captured.err


def test_a_generator_measured_as_it_is_made_equals_its_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = ("--model", "model", "--prompts", "prompts.txt", "--steps", "2", "--seed", "5")
    assert said(capsys, "ref", "--images", "real", "--out", "ref.safetensors")["n"] == 6
    numbers = ("--metrics", "fd", "kd", "prdc")
    made = said(capsys, "calc", *sampler, "--pictures", "7", "--reference", "ref.safetensors", *numbers)
    assert said(capsys, "gen", *sampler, "--pictures", "7", "--out", "pictures") == {"folder": "pictures", "n": 7}
    stored = said(capsys, "calc", "--images", "pictures", "--reference", "real", *numbers)
    for key in ("fd", "kd", "kd_se", "precision", "coverage"):
        assert made[key] == pytest.approx(stored[key], rel=1e-6)
    assert made["n"] == 7 and made["protocol"]["protocol"].startswith("mobilenet-offline@")
    assert Path("pictures/prompts.txt").read_text().splitlines()[3] == "red apple"


def test_two_processes_give_the_numbers_of_one(here: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    options = ["--model", "model", "--prompts", "prompts.txt", "--pictures", "7", "--reference", "real", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = []
    for processes, size in ((1, 64), (2, 1), (2, 3)):
        out = f"{processes}-{size}.json"
        command = [*launch, str(processes), str(ROOT / "eval" / "calc.py"), *options, out, "--batch_size", str(size)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        found.append(json.loads(Path(out).read_text()))
    for other in found[1:]:
        assert other["n"] == 7
        for key in ("fd", "kd", "kd_se"):
            assert other[key] == pytest.approx(found[0][key], rel=1e-9)


def test_layouts_of_other_tools(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = ("--model", "model", "--prompts", "prompts.txt", "--per_prompt", "2")
    said(capsys, "gen", *sampler, "--layout", "geneval", "--out", "g")
    assert sorted(p.relative_to("g").as_posix() for p in Path("g").rglob("*.png")) == [
        f"{i:05d}/samples/{k:04d}.png" for i in range(3) for k in range(2)
    ]
    assert json.loads(Path("g/00001/metadata.jsonl").read_text()) == {"prompt": "blue car"}
    said(capsys, "gen", *sampler, "--layout", "hpsv2", "--out", "h")
    with Image.open("h/00005.jpg") as picture:
        assert picture.format == "JPEG"


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, says in (
        (("clac",), "unknown command eval 'clac'"),
        (("calc", "--images", "real", "--reference", "nowhere"), "no pictures at nowhere"),
        (("calc", "--images", "real", "--reference", "real", "--metrics", "fids"), "unknown metric 'fids'"),
        (("calc", "--images", "real", "--reference", "real", "--protocol", "cleen"), "did you mean 'clean'"),
        (("calc", "--images", "real", "--reference", "real", "--protocol", "clean@00000000"), "do not compare"),
        (("calc", "--images", "real", "--reference", "real", "--pictures", "9"), "holds 6 pictures; 9 were asked for"),
        (("calc", "--model", "model", "--reference", "real"), "--model needs --prompts"),
        (("ref", "--images", "real", "--out", "ref.npz"), "should end in .safetensors"),
        (("gen", "--model", "model", "--prompts", "prompts.txt", "--out", "real"), "real is there already"),
    ):
        assert says in refused(capsys, *argv)
