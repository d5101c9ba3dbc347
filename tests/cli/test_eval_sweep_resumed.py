"""A sweep that goes on where it was: which cells are made again, and which are kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_calls import said
from sweep_calls import SMALL, SWEEP, needs_mobilenet, record

from diffdistill.cli.main import main
from diffdistill.comparison import generated
from diffdistill.evaluation.page.read import read_sweep

pytestmark = needs_mobilenet


def test_an_interrupted_sweep_goes_on_where_it_was(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], made: list, monkeypatch: pytest.MonkeyPatch
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
    spoilt.with_name(f"{spoilt.stem}-strip.png").write_bytes(b"no image")
    made.clear()
    assert said(capsys, *command)["made"] == 3
    assert made == [(2, 3.0, 0), (1, 1.0, 1_000_000), (2, 1.0, 1_000_000)]
    assert record(timed=False) == whole
    made.clear()
    assert said(capsys, *command, "--pictures", "6")["made"] == 10  # other cells; the old ones stay
    assert said(capsys, *command)["made"] == 0


def test_seeds_put_in_another_order_keep_what_is_there(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], made: list
) -> None:
    command = (*SWEEP, "--models", "model", "--steps", "1", "--guidance", "1", "--agreement", "none", "--seeds")
    said(capsys, *command, "0", "1")
    made.clear()
    said(capsys, *command, "1", "2")
    assert made == [(1, 1.0, 1_000_000), (1, 1.0, 2_000_000)]  # seed 1 again, now that its images are shown
    made.clear()
    said(capsys, *command, "0", "1", "2")
    assert made == [] and record()["samples"]["seed"] == 0


def test_another_torch_is_another_cell(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], made: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*SWEEP, "--models", "model", "--steps", "1", "--guidance", "1", "--agreement", "none", "--seeds", "0")
    said(capsys, *command)
    major, minor, patch = torch.__version__.split("+")[0].split(".")[:3]
    monkeypatch.setattr(torch, "__version__", f"{major}.{minor}.{int(patch) + 1}")
    assert said(capsys, *command)["made"] == 0
    monkeypatch.setattr(torch, "__version__", f"{major}.{int(minor) + 1}.0")
    assert said(capsys, *command)["made"] == 2
