"""`diffdistill quickstart`: distil the embedded teacher into one step, and show images and numbers.

The prompts are N captions of the training split, drawn once. The reference is every other training image, so no number
compares an image with the original of its own caption in the same style, unless two images share a caption. Image i
starts from noise of seed SEED + i.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.arguments import OneLineParser, as_options
from diffdistill.cli.paths import check_writable, find
from diffdistill.comparison.ruler import FEWEST, Ruler
from diffdistill.errors import UserError

CONFIG = "configs/emoji_quickstart.yaml"
GUIDANCE = (2.0, 3.0)  # scales of the teacher that are tried beside 1


def main(argv: Sequence[str]) -> None:
    """Distil the teacher that ships with the project, then compare the teacher and the student.

    Raises:
        UserError: bad input, such as a folder that already holds a run.
    """
    parser = OneLineParser(prog="diffdistill quickstart", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="folder of the run")
    parser.add_argument("--config", help=f"config file of the student; default {CONFIG}")
    parser.add_argument("--teacher", default="assets/teacher", help="the teacher's pipeline folder")
    parser.add_argument("--student", help="a student's pipeline folder, to measure it instead of distilling one")
    parser.add_argument("--n", type=int, default=512, help="number of images that each number is measured on")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts and the noise that are measured")
    parser.add_argument("--training_seed", type=int, help="seed of the training; default that of the config")
    parser.add_argument("--full", action="store_true", help="measure the teacher's stored numbers again")
    parser.add_argument(
        "--guidance", type=float, nargs="+", default=GUIDANCE, help="the teacher's guidance scales to choose from"
    )
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that holds a run")
    options = parser.parse_args(list(argv))
    run: Path = options.output_dir
    if run.exists() and not run.is_dir():
        raise UserError(f"--output_dir {run} is a file; name a folder")
    if any((run / name).exists() for name in ("report.json", "student")) and not options.overwrite:
        raise UserError(f"{run} already holds a run; add --overwrite or name another --output_dir")
    teacher = find(options.teacher)
    if not Path(teacher, "model_index.json").is_file():
        raise UserError(
            f"there is no teacher at {teacher}: train it with configs/emoji_teacher.yaml, or name another by --teacher"
        )
    chosen = find(options.student) if options.student else None
    if chosen and not Path(chosen, "model_index.json").is_file():
        raise UserError(f"there is no pipeline at --student {chosen}: model_index.json is missing")
    if not all(1 <= scale < math.inf for scale in options.guidance):
        raise UserError("--guidance must be numbers from 1, which is unguided")
    if options.n < FEWEST:
        raise UserError(f"--n is {options.n}; at least {FEWEST} images are needed")
    if options.student and (options.config or options.training_seed is not None):
        raise UserError("--student measures a student; --config and --training_seed are for one that is distilled")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed is {options.seed}; it must be in [0, 2^63)")
    check_writable(run, "--output_dir")
    if options.full:
        from diffdistill.comparison.teacher_and_student import STORED

        check_writable(Path(teacher) / STORED, "--teacher")
    from diffdistill.cli.train import check_has_teacher

    config = options.config or CONFIG
    check_has_teacher(config)
    recipe = _recipe(run, config, teacher, options.training_seed, options.overwrite)
    _refuse_early(recipe, teacher, chosen)

    from diffdistill.comparison.teacher_and_student import compare, write_comparison
    from diffdistill.evaluation.table import format_table

    started = time.perf_counter()
    with as_options(n="--n"):
        ruler = Ruler(options.n, options.seed, find("assets/emoji"))
    for name in ("report.json", "grid.png", "noises.png"):  # those of an earlier run do not belong to a new student
        (run / name).unlink(missing_ok=True)
    student = chosen or _distil(run, recipe)
    report = compare(ruler, teacher, student, options.guidance, options.full)
    write_comparison(run, report, ruler, teacher, student)
    print(format_table(report))
    print(f"KD, FD: on {ruler.extract.name} features, against {ruler.n_reference} other training images")
    print(
        f"KD/T, variety/T: over those of teacher_50, geometric means over {', '.join(ruler.encoders)}; variety is the "
        "mean distance between two images of one caption"
    )
    print(f"images: {run / 'grid.png'}, {run / 'noises.png'}, numbers: {run / 'report.json'}")
    print(f"seconds in all: {time.perf_counter() - started:.0f}")


def _recipe(run: Path, config: str, teacher: str, seed: int | None, overwrite: bool) -> list[str]:
    """Arguments of `diffdistill train` for the student."""
    return [
        *("--config", config, "--method.teacher.source", teacher),
        *(() if seed is None else ("--training.seed", str(seed))),
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
