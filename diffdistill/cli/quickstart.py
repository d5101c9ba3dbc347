"""`diffdistill quickstart`: distil the embedded teacher into one step, with pictures and numbers.

Prompts are N captions of the training split, drawn once; the reference is every other training picture, so no number
compares a picture with its own caption's original of the same style (but for a caption that two pictures share).
Images start from seed + index.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.paths import check_writable, find
from diffdistill.comparison.ruler import FEWEST, Ruler
from diffdistill.errors import UserError

STORED = "quick_numbers.json"  # beside the teacher: its figures, recomputed by --full
GUIDANCE = (2.0, 3.0)  # beside 1
GRID = 24


def main(argv: Sequence[str]) -> None:
    """Distil the teacher that ships with the project, then compare teacher and student.

    Raises:
        UserError: a folder that already holds a run, or no embedded teacher.
    """
    parser = OneLineParser(prog="diffdistill quickstart", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="folder of the run")
    parser.add_argument("--config", default="configs/emoji_quickstart.yaml", help="recipe of the student")
    parser.add_argument("--teacher", default="assets/teacher", help="pipeline folder")
    parser.add_argument("--student", help="a pipeline folder to measure instead of distilling one")
    parser.add_argument("--n", type=int, default=512, help="pictures per number")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts, the noise and the training")
    parser.add_argument("--full", action="store_true", help="compute the teacher's stored figures again")
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE, help="the teacher's, to choose from")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    options = parser.parse_args(list(argv))
    run: Path = options.output_dir
    if run.exists() and not run.is_dir():
        raise UserError(f"--output_dir {run} is a file; name a folder")
    if any((run / name).exists() for name in ("report.json", "student")) and not options.overwrite:
        raise UserError(f"{run} already holds a run; add --overwrite or name another --output_dir")
    teacher = find(options.teacher)
    if not Path(teacher, "model_index.json").is_file():
        raise UserError(f"no teacher at {teacher}: train it with configs/emoji_teacher.yaml, or name --teacher")
    chosen = find(options.student) if options.student else None
    if chosen and not Path(chosen, "model_index.json").is_file():
        raise UserError(f"no pipeline at --student {chosen}: model_index.json is missing")
    if not all(1 <= scale < math.inf for scale in options.guidance):
        raise UserError("--guidance must be numbers from 1, which is unguided")
    if options.n < FEWEST:
        raise UserError(f"--n is {options.n}; at least {FEWEST} pictures are needed")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed is {options.seed}; it must be in [0, 2^63)")
    check_writable(run, "--output_dir")
    if options.full:
        check_writable(Path(teacher) / STORED, "--teacher")
    recipe = _recipe(run, options.config, teacher, options.seed, options.overwrite)
    _refuse_early(recipe, teacher, chosen)

    started = time.perf_counter()
    bench = Ruler(options.n, options.seed, find("assets/emoji"))
    for name in ("report.json", "grid.png"):  # of an earlier run: none may stand beside a new student
        (run / name).unlink(missing_ok=True)
    student = chosen or _distil(run, recipe)
    report = _teacher_numbers(bench, teacher, options.full, options.guidance)
    report["student_untrained"] = _untrained(bench, teacher, student)
    print("student, 1 step", file=sys.stderr)
    report["student_1"] = bench.measure(student, 1, 1.0)
    report["floor"] = bench.floor()
    _write(run, report, bench, teacher, student)
    print(f"seconds in all: {time.perf_counter() - started:.0f}")


def _recipe(run: Path, config: str, teacher: str, seed: int, overwrite: bool) -> list[str]:
    """Arguments of `diffdistill train` for the student."""
    return [
        *("--config", config, "--method.teacher", teacher, "--training.seed", str(seed)),
        *("--output_dir", str(run / "student"), "--overwrite", str(overwrite).lower()),
    ]


def _refuse_early(recipe: Sequence[str], teacher: str, student: str | None) -> None:
    """Raise UserError for what training or measuring would refuse, before an earlier result is removed."""
    from diffdistill.cli.train import main as train
    from diffdistill.models.teacher import load_teacher

    if student is None:
        with contextlib.redirect_stdout(None):
            train([*recipe, "--dry_run"])
    for folder in filter(None, (teacher, student)):
        load_teacher(folder)


def _distil(run: Path, recipe: Sequence[str]) -> str:
    from diffdistill.cli.train import main as train

    train(recipe)
    return str(run / "student" / "export")


def _teacher_numbers(bench: Ruler, folder: str, full: bool, guidance: Sequence[float]) -> dict[str, Any]:
    """teacher_50 and teacher_1 at the guidance that is best for each, and teacher_50_unguided; stored or measured."""
    import json

    from diffdistill.files import write_json_atomic
    from diffdistill.models.teacher import load_teacher

    loaded = load_teacher(folder)
    scales = sorted({1.0, *guidance})
    path, key = Path(folder, STORED), f"n {bench.n}, seed {bench.seed}"
    made_from = {"teacher": loaded.digest(), "guidance": scales, "protocol": bench.protocol}
    try:
        stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:  # half a file is no file
        stored = {}
    if key in stored and not full and stored[key].get("made_from") == made_from:
        report: dict[str, Any] = stored[key]["report"]
        for name, row in report.items():  # the machine that stored them was another one: time a few pictures here
            row["seconds_per_image"] = bench.seconds(loaded, row["steps"], row["guidance"])
            print(f"{name}: stored figures", file=sys.stderr, flush=True)
        return report

    sweep: list[dict[str, Any]] = []
    for steps in (50, 1):
        for scale in scales:
            print(f"teacher, {steps} steps, guidance {scale:g}", file=sys.stderr, flush=True)
            sweep.append(bench.measure(loaded, steps, scale))
    best = {steps: min((v for v in sweep if v["steps"] == steps), key=lambda v: float(v["kd"])) for steps in (50, 1)}
    unguided = next(v for v in sweep if v["steps"] == 50 and v["guidance"] == 1)
    report = {"teacher_50": best[50], "teacher_50_unguided": unguided, "teacher_1": best[1]}
    if full:
        write_json_atomic(path, {**stored, key: {"report": report, "sweep": sweep, "made_from": made_from}})
    return report


def _untrained(bench: Ruler, teacher: str, student: str) -> dict[str, Any]:
    """Where the student started: the teacher's network exported as a one-step generator at the student's own time."""
    from diffdistill.models.export import export_one_step
    from diffdistill.models.teacher import load_teacher

    loaded = load_teacher(teacher)
    last = int(load_teacher(student).schedule.last)
    with tempfile.TemporaryDirectory() as folder:
        export_one_step(loaded, loaded.pipeline.unet, last, Path(folder))
        print("student before training, 1 step", file=sys.stderr, flush=True)
        return bench.measure(folder, 1, 1.0)


def _write(run: Path, report: Mapping[str, Any], bench: Ruler, teacher: str, student: str) -> None:
    import torch

    from diffdistill.data.save import save_labelled_grids
    from diffdistill.evaluation import format_table
    from diffdistill.files import write_json_atomic
    from diffdistill.models.generate import generate
    from diffdistill.models.teacher import load_teacher

    prompts = bench.prompts[:GRID]
    guided = report["teacher_50"]["guidance"], report["teacher_1"]["guidance"]
    rows = {
        f"teacher, 50 steps, guidance {guided[0]:g}": (teacher, 50, guided[0]),
        f"teacher, 1 step, guidance {guided[1]:g}": (teacher, 1, guided[1]),
        "student, 1 step": (student, 1, 1.0),
    }
    grids = {k: torch.cat(list(generate(m, prompts, steps, s, bench.seed))) for k, (m, steps, s) in rows.items()}
    save_labelled_grids(run / "grid.png", grids, columns=GRID // 2)
    made_from = {"teacher": load_teacher(teacher).digest(), "student": load_teacher(student).digest()}
    write_json_atomic(run / "report.json", {**report, "protocol": bench.protocol, "made_from": made_from})
    print(format_table(report))
    print(f"features: {bench.extract.protocol['extractor']}, reference: {len(bench.real) - bench.n} training pictures")
    print(f"pictures: {run / 'grid.png'}, numbers: {run / 'report.json'}")
