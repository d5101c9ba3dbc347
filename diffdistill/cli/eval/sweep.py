"""`diffdistill eval sweep`: several pipelines over steps, guidance and seeds; interrupted, it goes on where it was."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.arguments import OneLineParser, add_eta
from diffdistill.cli.eval.agreement import check_clip, clip_options
from diffdistill.cli.eval.options import is_first, parse, parser_of
from diffdistill.cli.paths import check_writable, find
from diffdistill.data.text_files import check_text
from diffdistill.errors import UserError
from diffdistill.evaluation.page.record import MAX_COUNTS, MAX_GENERATOR


def main(argv: Sequence[str]) -> None:
    """Measure pipelines over steps, guidance and seeds: `--models DIR ... --students DIR ... --out FOLDER`."""
    shared = parser_of("sweep", main.__doc__ or "")
    how = {"parents": [shared], "conflict_handler": "resolve"}  # --pictures has another default here
    parser = OneLineParser(prog=shared.prog, description=shared.description, **how)
    parser.add_argument("--pictures", type=int, help="a cell; by default the protocol's number, or 512")
    where = "pipeline folders or hub ids, or NAME=PATH"
    parser.add_argument("--models", nargs="+", default=[], help=f"{where}: measured at every --steps and --guidance")
    parser.add_argument("--students", nargs="+", default=[], help=f"{where}: measured at every --steps, unguided")
    parser.add_argument("--steps", dest="step_counts", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8, 25, 50])
    parser.add_argument("--guidance", dest="scales", metavar="W", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    add_eta(parser)
    parser.add_argument("--seeds", metavar="SEED", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reference", default="assets/emoji", help="emoji set; with --prompts also as of `eval calc`")
    parser.add_argument("--prompts", help="text file, one prompt a line; by default captions drawn from --reference")
    parser.add_argument("--real", help="with --prompts: real pictures, or what `eval ref` wrote, for the floor")
    parser.add_argument(
        "--metrics", nargs="+", default=["fd", "kd", "prdc"], metavar="METRIC", help="of fd, kd, prdc, cmmd"
    )
    parser.add_argument("--agreement", choices=("align", "clip", "none"), default="align", help="of picture and prompt")
    parser.add_argument("--agreement_pictures", type=int, default=128, help="the first so many of a cell, at most all")
    clip_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="a folder: new, or that of a sweep to go on with")
    o = _checked(parse(parser, argv))
    named = _named(o)

    from diffdistill.cli.eval.sweep_run import Sweep

    sweep = Sweep(o, named)
    made = sweep.run()
    if is_first():
        print(json.dumps({"sweep": str(sweep.out / "sweep.json"), "cells": len(sweep.order), "made": made}))


def _checked(o: argparse.Namespace) -> argparse.Namespace:
    """Raise UserError for what is wrong with the options alone; values given twice are taken once."""
    for option, values, least, most in (
        ("--steps", o.step_counts, 1, math.inf),
        ("--guidance", o.scales, 1, 1e6),
        ("--seeds", o.seeds, 0, 2**40),
    ):
        for value in values:
            if not least <= value <= most or value == math.inf:
                bounds = f"at least {least}" if most == math.inf else f"from {least} to {most:g}"
                raise UserError(f"{option} has {value:g}; each must be {bounds}")
    o.step_counts, o.scales, o.seeds = (list(dict.fromkeys(v)) for v in (o.step_counts, o.scales, o.seeds))
    if not o.models and not o.students:
        raise UserError("there is nothing to measure; name --models, --students or both")
    if o.agreement_pictures < 2:
        raise UserError(f"--agreement_pictures is {o.agreement_pictures}; it must be at least 2")
    check_clip(o)
    settings = (len(o.models) * len(o.scales) + len(o.students)) * len(o.step_counts)
    for what, n in (("generators", len(o.models) + len(o.students)), ("seeds", len(o.seeds)), ("rows", settings)):
        if n > MAX_COUNTS[what]:
            raise UserError(f"these are {n} {what}; a report shows at most {MAX_COUNTS[what]}")
    if o.real is not None and o.prompts is None:
        raise UserError("--real goes with --prompts; without them, the emoji set gives the real pictures itself")
    if o.prompts is None and not Path(find(o.reference), "concepts.tsv").is_file():
        raise UserError(f"--reference {o.reference} is no emoji set to draw prompts from; name --prompts FILE")
    if o.out.exists() and not o.out.is_dir():
        raise UserError(f"--out {o.out} is a file; name a folder")
    if o.out.is_dir() and not (o.out / "cells").is_dir() and any(p.name[0] != "." for p in o.out.iterdir()):
        raise UserError(f"--out {o.out} holds something that is no sweep; name a new folder")
    check_writable(o.out, "--out")
    return o


def _named(o: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """By name, the path as it was given, and "model" or "student".

    Raises:
        UserError: a name that is given twice, or cannot be part of a file's.
    """
    found = []
    for kind, values in (("model", o.models), ("student", o.students)):
        for value in values:
            name, equals, path = value.partition("=")
            if not equals or Path(find(value)).exists():
                name, path = Path(value).name or Path(value).resolve().name, value
            check_text(value, "a generator's path")
            if not re.fullmatch(r"\w[\w .+-]*", name) or len(name) > MAX_GENERATOR:
                raise UserError(
                    f"{value!r} gives a generator the name {name!r}; name it as in teacher={path or 'PATH'}, in at "
                    f"most {MAX_GENERATOR} characters"
                )
            found.append((name, path, kind))
    twice = [name for name, n in Counter(name for name, _, _ in found).items() if n > 1]
    if twice:
        raise UserError(f"two generators are called {twice[0]!r}; name them as in {twice[0]}-2=PATH")
    return {name: (path, kind) for name, path, kind in found}
