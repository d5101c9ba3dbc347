"""`diffdistill eval compare`: students against their teacher on several encoders: distances and variety."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.arguments import OneLineParser, as_options
from diffdistill.cli.eval.options import device_of, is_first, parse, prompt_records
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.comparison.compare import Compared
    from diffdistill.comparison.compare_ground import CompareGround


def main(argv: Sequence[str]) -> None:
    """Compare students with their teacher: `--teacher DIR --students DIR ... --out FOLDER`."""
    o = _options(argv)
    device = device_of(o)

    from diffdistill.comparison.compare import ComparePlan, Comparison
    from diffdistill.evaluation.battery.encoders import Battery, build_encoder
    from diffdistill.evaluation.measure import Reading

    battery = Battery(tuple(o.tuning), tuple(o.judging))
    with as_options(images="--pictures", captions="--captions", per_caption="--per_caption", seeds="--seeds"):
        plan = ComparePlan(_teacher(o), _students(o), list(dict.fromkeys(o.seeds)), o.per_caption)
        ground = _ground(o)
        encoders = {name: build_encoder(name, device) for name in battery.names}
        reading = Reading(batch_size=o.batch_size, progress=is_first())
        comparison = Comparison(plan, ground, battery, encoders, o.out, reading)
        record = comparison.run()
    if is_first():
        print(json.dumps({"page": str(o.out / "index.html"), "rows": _short(record)}, indent=1))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    from diffdistill.evaluation.battery.encoders import JUDGING, TUNING

    parser = OneLineParser(prog="diffdistill eval compare", description=(main.__doc__ or "").splitlines()[0])
    where = "a pipeline folder or a hub id, or NAME=PATH"
    parser.add_argument("--teacher", default="assets/teacher", help=f"{where} (default: assets/teacher)")
    parser.add_argument("--teacher_steps", type=int, default=50, help="the teacher's number of steps (default: 50)")
    parser.add_argument("--teacher_guidance", type=float, default=3.0, help="its guidance scale (default: 3)")
    parser.add_argument("--students", nargs="+", required=True, metavar="STUDENT", help=where)
    parser.add_argument(
        "--steps", dest="step_counts", type=int, nargs="+", default=[1], metavar="N",
        help="numbers of steps of the students (default: 1)",
    )  # fmt: skip
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale of the students (default: 1, none)")
    parser.add_argument(
        "--split", choices=("train", "heldout"), default="train",
        help="captions of the emoji set: of training images, or of concepts that are kept from training",
    )  # fmt: skip
    parser.add_argument("--prompts", help="a file of prompts, in place of captions of the emoji set")
    parser.add_argument("--reference", default="assets/emoji", help="an emoji set or, with --prompts, any real images")
    parser.add_argument("--pictures", type=int, default=1024, help="images of each generator and seed (default: 1024)")
    parser.add_argument(
        "--captions", type=int, default=32, help="captions that are drawn several times, for variety (default: 32)"
    )
    parser.add_argument("--per_caption", type=int, default=8, help="images of each of these (default: 8)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument(
        "--tuning", nargs="*", default=list(TUNING), metavar="ENCODER",
        help=f"encoders that choices were made by (default: {' '.join(TUNING)})",
    )  # fmt: skip
    parser.add_argument(
        "--judging", nargs="*", default=list(JUDGING), metavar="ENCODER",
        help=f"encoders for the last look alone (default: {' '.join(JUDGING)}); inception-tf and dinov2-vitl14 where "
        "their weights are; none after it leaves these out",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=64, help="images in a batch; it changes no number")
    parser.add_argument("--device", default=None, help="cpu or cuda; by default cuda where there is a GPU")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or that of a comparison to go on with")
    o = parse(parser, argv)
    for name in ("teacher_steps", "captions", "per_caption"):
        if getattr(o, name) < 1:
            raise UserError(f"--{name} is {getattr(o, name)}; it must be at least 1")
    if min(o.step_counts) < 1:
        raise UserError(f"--steps has {min(o.step_counts)}; each must be at least 1")
    if not 1 <= o.teacher_guidance < float("inf"):
        raise UserError(f"--teacher_guidance is {o.teacher_guidance:g}; it must be a number from 1, which is unguided")
    if o.prompts is None and not Path(find(o.reference), "concepts.tsv").is_file():
        raise UserError(f"--reference {o.reference} is no emoji set that gives prompts; name --prompts FILE")
    if o.prompts is not None and o.split != "train":
        raise UserError("--split is a part of an emoji set; leave it out with --prompts")
    if o.out.exists() and not o.out.is_dir():
        raise UserError(f"--out {o.out} is a file; name a folder")
    if o.out.is_dir() and not (o.out / "compare.json").is_file() and any(p.name[0] != "." for p in o.out.iterdir()):
        raise UserError(f"--out {o.out} holds something that is no comparison; name a new folder")
    check_writable(o.out, "--out")
    return o


def _teacher(o: argparse.Namespace) -> Compared:
    from diffdistill.comparison.compare import Compared

    name, path = _named(o.teacher)
    return Compared(name, path, o.teacher_steps, o.teacher_guidance)


def _students(o: argparse.Namespace) -> list[Compared]:
    from diffdistill.comparison.compare import Compared

    found = []
    for value in o.students:
        name, path = _named(value)
        for steps in dict.fromkeys(o.step_counts):
            several = f", {steps} step{'' if steps == 1 else 's'}" if len(set(o.step_counts)) > 1 else ""
            found.append(Compared(name + several, path, steps, o.guidance))
    return found


def _named(value: str) -> tuple[str, str]:
    """The name of a generator and where it is, as `find` finds it."""
    from diffdistill.comparison.probed import named_path

    name, path = named_path(value)
    if not re.fullmatch(r"\w[\w .+-]{0,60}", name):
        raise UserError(f"{value!r} gives a generator the name {name!r}; name it as in student={path}")
    return name, find(path)


def _ground(o: argparse.Namespace) -> CompareGround:
    from diffdistill.comparison.compare_ground import emoji_ground, given_ground

    reference = find(o.reference)
    if o.prompts is None:
        return emoji_ground(reference, o.split, o.pictures, o.captions, o.reference)
    prompts = [record["prompt"] for record in prompt_records(o)]
    return given_ground(prompts, reference, o.pictures, o.captions, f"the prompts of {o.prompts}")


def _short(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Name and ratios of each row, rounded."""
    rows = []
    for row in record["rows"]:
        ratios = {name: each["ratios"] for name, each in row["encoders"].items()}
        short: dict[str, Any] = {"name": row["name"]}
        for key in ("kd", "variety", "vendi"):
            short[key] = {name: None if each[key] is None else round(each[key][0], 3) for name, each in ratios.items()}
        rows.append(short)
    return rows
