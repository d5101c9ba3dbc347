"""A teacher and its one-step student by one ruler: the numbers and the image grid of the quickstart.

The teacher's numbers take minutes, so they may be stored beside it, with everything that they depend on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffdistill.comparison.ruler import Ruler, add_ratios
from diffdistill.data.save import save_labelled_grids
from diffdistill.files import write_json_atomic
from diffdistill.models.export import export_one_step
from diffdistill.models.generate import generate, network_of
from diffdistill.models.teacher import load_teacher

STORED = "quick_numbers.json"  # beside the teacher
GRID = 24  # images of a generator in the grid
CAPTIONS, NOISES = 3, 8  # in the grid of noises


def teacher_numbers(
    ruler: Ruler, folder: str, guidance: Sequence[float], measure_again: bool = False
) -> dict[str, Any]:
    """The teacher's numbers, at 50 steps and at one: at the best guidance scale of each, and unguided at 50 steps.

    Args:
        ruler: measures.
        folder: the teacher's pipeline folder.
        guidance: scales to choose from, by the kernel distance; 1, which is unguided, is always among them.
        measure_again: measure even where stored numbers fit, and store what was measured.

    Returns:
        What `Ruler.measure` gives, under "teacher_50", "teacher_50_unguided" and "teacher_1".
    """
    loaded = load_teacher(folder)
    scales = sorted({1.0, *guidance})
    path, key = Path(folder, STORED), f"n {ruler.n}, seed {ruler.seed}"
    made_from = {"teacher": loaded.digest(), "guidance": scales, "protocol": ruler.protocol}
    try:
        stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:  # half a file is no file
        stored = {}
    if key in stored and not measure_again and stored[key].get("made_from") == made_from:
        report: dict[str, Any] = stored[key]["report"]
        for name, row in report.items():  # seconds depend on the machine: time a few images on this one
            row["seconds_per_image"] = ruler.seconds(loaded, row["steps"], row["guidance"])
            _say(f"{name}: stored numbers")
        return report

    sweep: list[dict[str, Any]] = []
    for steps in (50, 1):
        for scale in scales:
            _say(f"teacher, {steps} steps, guidance {scale:g}")
            sweep.append(ruler.measure(loaded, steps, scale))
    best = {steps: min((v for v in sweep if v["steps"] == steps), key=lambda v: float(v["kd"])) for steps in (50, 1)}
    unguided = next(v for v in sweep if v["steps"] == 50 and v["guidance"] == 1)
    report = {"teacher_50": best[50], "teacher_50_unguided": unguided, "teacher_1": best[1]}
    if measure_again:
        write_json_atomic(path, {**stored, key: {"report": report, "sweep": sweep, "made_from": made_from}})
    return report


def untrained_numbers(ruler: Ruler, teacher: str, student: str) -> dict[str, Any]:
    """Where the student started: the teacher's network as a one-step generator at the student's own time."""
    loaded = load_teacher(teacher)
    last = int(load_teacher(student).schedule.last)
    with tempfile.TemporaryDirectory() as folder:
        export_one_step(loaded, network_of(loaded), last, Path(folder))
        _say("student before training, 1 step")
        return ruler.measure(folder, 1, 1.0)


def compare(
    ruler: Ruler, teacher: str, student: str, guidance: Sequence[float], measure_again: bool = False
) -> dict[str, dict[str, Any]]:
    """The numbers of a teacher, of its student before and after training, and of real images.

    Args:
        ruler: measures.
        teacher, student: pipeline folders.
        guidance, measure_again: as in `teacher_numbers`.

    Returns:
        Numbers under "teacher_50", "teacher_50_unguided", "teacher_1", "student_untrained", "student_1" and "floor".
    """
    report = teacher_numbers(ruler, teacher, guidance, measure_again)
    report["student_untrained"] = untrained_numbers(ruler, teacher, student)
    _say("student, 1 step")
    report["student_1"] = ruler.measure(student, 1, 1.0)
    report["floor"] = ruler.floor()
    add_ratios(report, "teacher_50")
    return report


def write_comparison(
    folder: Path, report: Mapping[str, Mapping[str, Any]], ruler: Ruler, teacher: str, student: str
) -> None:
    """Write report.json, and two grids of the same prompts and noises, drawn by the teacher and by the student.

    grid.png has an image of each of 24 prompts. noises.png has eight images of each of three prompts, those of the
    teacher above those of the student.
    """
    prompts = ruler.prompts[:GRID]
    guided = report["teacher_50"]["guidance"], report["teacher_1"]["guidance"]
    rows = {
        f"teacher, 50 steps, guidance {guided[0]:g}": (teacher, 50, guided[0]),
        f"teacher, 1 step, guidance {guided[1]:g}": (teacher, 1, guided[1]),
        "student, 1 step": (student, 1, 1.0),
    }
    grids = {k: torch.cat(list(generate(m, prompts, steps, s, ruler.seed))) for k, (m, steps, s) in rows.items()}
    save_labelled_grids(folder / "grid.png", grids, columns=GRID // 2)
    of = ((teacher, 50, guided[0]), (student, 1, 1.0))
    noises = {
        f"{prompt}: teacher, 50 steps; student, 1 step": torch.cat(
            [image for m, steps, s in of for image in generate(m, [prompt] * NOISES, steps, s, ruler.seed)]
        )
        for prompt in list(dict.fromkeys(prompts))[:CAPTIONS]
    }
    save_labelled_grids(folder / "noises.png", noises, columns=NOISES)
    made_from = {"teacher": load_teacher(teacher).digest(), "student": load_teacher(student).digest()}
    write_json_atomic(folder / "report.json", {**report, "protocol": ruler.protocol, "made_from": made_from})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
