"""The leaderboard's table and plot: methods in order, KD between the points of a curve, a name at each line."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import leaderboard_report as report
import pytest

from diffdistill.errors import UserError

CURVE = [
    {"images": 100, "cpu_minutes": 1.0, "steps": 1, "kd": 0.5},
    {"images": 100, "cpu_minutes": 1.0, "steps": 4, "kd": 0.4},
    {"images": 200, "cpu_minutes": 2.0, "steps": 1, "kd": 0.45},
    {"images": 200, "cpu_minutes": 2.0, "steps": 4, "kd": 0.3},
]


def record(name: str, seed: int, kd: float, curve: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {"kd": kd, "fd": 300.0, "align_score": 0.2, "recall": 0.4}
    best = {1: {"steps": 1, "guidance": 1.0, "mean": numbers}, 4: {"steps": 4, "guidance": 2.0, "mean": numbers}}
    shared = {"images": 200, "cpu_minutes": 2.0, "peak_mib": 1000 + seed}
    return {"name": name, "seed": seed, "best": best, "curve": curve, **shared}


def test_kd_after_equal_minutes_is_between_the_points_that_end_lowest() -> None:
    assert report._at(CURVE, 1.5) == ".350 at 4"
    assert report._at(CURVE, 1.0) == ".400 at 4"
    assert report._at(CURVE, 0.9) == report._at(CURVE, 2.1) == report._at(CURVE[:1], 1.0) == report._at([], 1.0) == ""


def test_methods_are_in_order_and_runs_are_averaged() -> None:
    found = [record("slow", 0, 0.4, CURVE), record("good", 0, 0.2, []), record("good", 1, 0.3, [])]
    lines = report.table(found, []).splitlines()
    assert lines[0].endswith("| KD after 2 min |")
    good, slow = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert good[:7] == ["good", "2", "200", "2", "1,001", ".250 ± .071", ".250 ± .071"] and good[-1] == ""
    assert slow[0] == "slow" and slow[5] == ".400" and slow[-1].endswith("at 4")


def test_variety_is_over_that_of_the_teacher_at_its_most_steps() -> None:
    numbers = {"kd": 0.2, "fd": 1.0, "recall": 0.5, "align_score": 0.2, "vendi": 2.0}
    teacher = [
        {"generator": "teacher", "steps": n, "guidance": 3.0, "mean": {**numbers, "variety": variety}}
        for n, variety in ((1, 6.0), (4, 7.0), (8, 8.0), (50, 10.0))
    ]
    runs = [record("good", seed, 0.2, []) for seed in (0, 1)]
    for run, variety, vendi in zip(runs, (5.0, 7.0), (1.5, 1.5), strict=True):
        for best in run["best"].values():
            best["mean"] |= {"variety": variety, "vendi": vendi}
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in report.table(runs, teacher).splitlines()
    )
    at = head.index("variety")
    assert head[at:] == ["variety", "Vendi", "variety, 1"]  # no KD after equal minutes, because no run has a curve
    assert [row[at] for row in rows] == [".60 ± .14", ".80", "1.00"]
    assert [row[at + 1] for row in rows] == [".50 ± .00", "1.00", "1.00"]
    assert [row[at + 2] for row in rows] == [".60 ± .14", ".60", ""]
    assert report.table([record("old", 0, 0.2, [])], teacher).splitlines()[2].split("|")[at + 1].strip() == ""


def test_runs_that_are_no_race_are_refused(tmp_path: Path) -> None:
    paths = []
    for name, pictures, seeds in (("a", 256, [0]), ("b", 256, [0]), ("c", 256, [0, 1]), ("d", 128, [0])):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"pictures": pictures, "seeds": seeds}))
    runs = [record("one", 0, 0.2, []), record("two", 0, 0.3, [])]
    report.check_one_race(runs, paths[:2])
    for other in paths[2:]:
        with pytest.raises(UserError, match="measured on .* but .* use another --out"):
            report.check_one_race(runs, [*paths[:2], other])
    with pytest.raises(
        UserError, match="one, seed 0 is trained on 200 images, but two, seed 0 is trained on 100 images"
    ):
        report.check_one_race([runs[0], {**runs[1], "images": 100}], paths[:2])


def test_each_line_of_the_plot_has_its_name_beside_it(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    names = [f"method {k}" for k in range(12)]
    found = [record(name, 0, 0.3 + 0.001 * k, CURVE) for k, name in enumerate(names)]  # ends that nearly coincide
    teacher = [{"generator": "teacher", "steps": n, "guidance": 2.0, "mean": {"kd": 0.25}} for n in (1, 4, 50)]
    report.plot(found, teacher, tmp_path / "plot.png")
    figure = pyplot.gcf()
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    for axis, more in zip(figure.axes, ([], [], ["teacher"]), strict=True):
        assert axis.get_legend() is None
        written = sorted(axis.texts, key=lambda text: text.get_position()[1])
        assert sorted(text.get_text() for text in written) == sorted([*names, *more, "teacher, 50 steps"])
        boxes = [text.get_window_extent() for text in written]
        assert all(a.y1 <= b.y0 + 1 for a, b in zip(boxes, boxes[1:], strict=False))  # none over another
        assert all(box.x0 > axis.get_window_extent().x1 for box in boxes)  # nor over the lines
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == ["1", "4"]
    pyplot.close(figure)


def test_the_plot_of_steps_is_drawn_from_the_table_alone(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    teacher = [{"generator": "teacher", "steps": n, "guidance": 2.0} for n in (1, 4, 8, 50)]
    for row in teacher:
        row["mean"] = {"kd": 0.25, "fd": 290.0, "align_score": 0.2, "recall": 0.4}
    written = report.table([record("slow", 0, 0.4, CURVE), record("good", 0, 0.2, [])], teacher)
    (tmp_path / "results.md").write_text(f"before\n{report.START}\n{written}\n{report.END}\nafter\n")
    found, rows = report.from_table(tmp_path / "results.md")
    kds = {run["name"]: {n: best["mean"]["kd"] for n, best in run["best"].items()} for run in found}
    assert kds == {"good": {1: 0.2, 4: 0.2}, "slow": {1: 0.4, 4: 0.4}}
    assert sorted(row["steps"] for row in rows) == [1, 4, 8, 50]
    report.plot(found, rows, tmp_path / "plot.png")
    (axis,) = pyplot.gcf().axes
    assert axis.get_xlabel() == "steps" and {line.get_label() for line in axis.lines}
    pyplot.close()
