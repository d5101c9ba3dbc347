"""`curves.html` of a run: which numbers it draws, how many points, and which grid of images it shows."""

import base64
import json
from pathlib import Path

import torch

from diffdistill.data.save import save_grid
from diffdistill.training.curves import POINTS, series_of, write_curves


def test_points_are_averaged_in_groups_and_odd_values_left_out() -> None:
    lines = [{"samples": 10 * i, "step": i, "student/loss": float(i), "seconds": 1.0} for i in range(1, 301)]
    lines.append({"samples": 3010, "step": 301, "student/loss": None, "validation/variety": 0.5})
    found = series_of(lines)
    assert set(found) == {"student/loss", "validation/variety"}
    losses = found["student/loss"]
    assert len(losses) == 100 <= POINTS and losses[0] == (20.0, 2.0) and losses[-1] == (2990.0, 299.0)


def test_the_page_has_plots_the_last_grid_of_this_run_and_no_markup_of_names(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    (run / "grids").mkdir(parents=True)
    lines = [{"samples": s, "step": s, "a<i>/loss": 1.0 / s, "validation/variety": 0.9} for s in (1, 2, 3)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("0000000002", "0000000009", "overview"):  # one of an end that was given up, and one that is no grid
        save_grid(run / "grids" / f"{name}.png", torch.rand(2, 3, 4, 4))
    write_curves(run, 3)
    page = (run / "curves.html").read_text()
    assert "<b>run" not in page and "a<i>" not in page and "&lt;b&gt;run" in page
    assert page.count("<svg") == 2 and "Images after 2 samples" in page
    assert base64.b64encode((run / "grids" / "0000000002.png").read_bytes()).decode() in page


def test_a_run_without_numbers_has_no_page(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("")
    write_curves(tmp_path, 0)
    assert not (tmp_path / "curves.html").exists()
