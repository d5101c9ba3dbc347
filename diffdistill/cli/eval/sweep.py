"""`diffdistill eval sweep`: several generators over steps, guidance and seeds; an interrupted sweep can be resumed."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffdistill.cli.arguments import OneLineParser, add_eta, as_options
from diffdistill.cli.eval.agreement import check_clip, clip_options, towers_of
from diffdistill.cli.eval.options import (
    METRICS_HELP,
    is_first,
    parse,
    parser_of,
    prompt_records,
    protocol_of,
    reading_of,
)
from diffdistill.cli.paths import check_writable, find
from diffdistill.data.text_files import check_text
from diffdistill.errors import UserError
from diffdistill.evaluation.page.record import MAX_GENERATOR

if TYPE_CHECKING:
    from diffdistill.comparison.sweep_plan import SweepPlan
    from diffdistill.evaluation.sweep.ground import Ground


def main(argv: Sequence[str]) -> None:
    """Measure generators over steps, guidance and seeds: `--models DIR ... --students DIR ... --out FOLDER`."""
    o = _options(argv)
    named = _named(o)

    from diffdistill.comparison.sweep import Sweep
    from diffdistill.comparison.sweep_plan import IMAGES, SweepPlan, SweepProtocol, SweptGenerator
    from diffdistill.evaluation.protocols import protocol_named

    names = {"steps": "--steps", "guidance": "--guidance", "seeds": "--seeds", "images": "--pictures", "real": "--real"}
    names |= {"variety_captions": "--variety_captions", "per_caption": "--per_caption"}
    with as_options(**names, agreement_images="--agreement_pictures"):
        plan = SweepPlan(
            [SweptGenerator(name, find(path), kind, written=path) for name, (path, kind) in named.items()],
            steps=o.step_counts,
            guidance=o.scales,
            seeds=o.seeds,
            images=o.pictures or protocol_named(o.protocol).n_generated or IMAGES,
            agreement_images=o.agreement_pictures,
            metrics=o.metrics,
            variety_captions=o.variety_captions,
            per_caption=o.per_caption,
            eta=o.eta,
        )
        protocol, extractor = protocol_of(o)
        ground = _ground(o, plan, extractor.name)
        towers = None if o.agreement == "none" else towers_of(o, protocol)
        how = SweepProtocol(protocol, extractor, towers, reading_of(o))
        sweep = Sweep(plan, how, ground, o.out)
        made = sweep.run()
    if is_first():
        print(json.dumps({"sweep": str(sweep.out / "sweep.json"), "cells": len(sweep.order), "made": made}))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    shared = parser_of("sweep", main.__doc__ or "")
    inherited = {"parents": [shared], "conflict_handler": "resolve"}  # --pictures has another default here
    parser = OneLineParser(prog=shared.prog, description=shared.description, **inherited)
    parser.add_argument(
        "--pictures", type=int, help="number of images in a cell; by default the protocol's number, or 512"
    )
    where = "pipeline folders or hub ids, or NAME=PATH"
    parser.add_argument("--models", nargs="+", default=[], help=f"{where}, measured at every --steps and --guidance")
    parser.add_argument(
        "--students", nargs="+", default=[], help=f"{where}, measured at every --steps without guidance"
    )
    parser.add_argument(
        "--steps",
        dest="step_counts",
        metavar="N",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 25, 50],
        help="numbers of steps",
    )
    parser.add_argument(
        "--guidance",
        dest="scales",
        metavar="W",
        type=float,
        nargs="+",
        default=[1.0, 2.0, 3.0, 4.0],
        help="guidance scales",
    )
    add_eta(parser)
    parser.add_argument("--seeds", metavar="SEED", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    parser.add_argument(
        "--reference", default="assets/emoji", help="an emoji set; with --prompts, also what `eval calc` takes"
    )
    parser.add_argument("--prompts", help="a file of prompts; by default captions are drawn from --reference")
    parser.add_argument("--real", help="with --prompts: real images, or a file that `eval ref` wrote, for the floor")
    parser.add_argument("--metrics", nargs="+", default=["fd", "kd", "prdc"], metavar="METRIC", help=METRICS_HELP)
    parser.add_argument(
        "--agreement", choices=("align", "clip", "none"), default="align", help="the towers of agreement"
    )
    parser.add_argument(
        "--agreement_pictures", type=int, default=128, help="number of a cell's images on which agreement is measured"
    )
    parser.add_argument(
        "--variety_captions", type=int, default=16,
        help="captions that are drawn several times, for the variety within a caption; 0 for none (default: 16)",
    )  # fmt: skip
    parser.add_argument("--per_caption", type=int, default=4, help="images of each of these (default: 4)")
    clip_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or that of a sweep to resume")
    return _checked(parse(parser, argv))


def _checked(o: argparse.Namespace) -> argparse.Namespace:
    """Raise UserError for what is wrong with the options alone."""
    if not o.models and not o.students:
        raise UserError("there is nothing to measure; name --models, --students or both")
    check_clip(o)
    if o.real is not None and o.prompts is None:
        raise UserError("--real goes with --prompts; without them, the emoji set gives the real images itself")
    if o.prompts is None and not Path(find(o.reference), "concepts.tsv").is_file():
        raise UserError(f"--reference {o.reference} is no emoji set that gives prompts; name --prompts FILE")
    if o.out.exists() and not o.out.is_dir():
        raise UserError(f"--out {o.out} is a file; name a folder")
    if o.out.is_dir() and not (o.out / "cells").is_dir() and any(p.name[0] != "." for p in o.out.iterdir()):
        raise UserError(f"--out {o.out} holds something that is no sweep; name a new folder")
    check_writable(o.out, "--out")
    return o


def _ground(o: argparse.Namespace, plan: SweepPlan, extractor: str) -> Ground:
    """Prompts and reference, by the options."""
    from diffdistill.evaluation.sweep.ground import EmojiGround, GivenGround

    reference = find(o.reference)
    if o.prompts is None:
        return EmojiGround(reference, plan.images, plan.metrics, extractor, o.reference)
    prompts = [record["prompt"] for record in prompt_records(o)]
    real = None if o.real is None else find(o.real)
    return GivenGround(prompts, plan.images, reference, real, plan.metrics, extractor, o.on_corrupt, o.reference)


def _named(o: argparse.Namespace) -> dict[str, tuple[str, Literal["model", "student"]]]:
    """For each generator's name, its path as it was given, and "model" or "student".

    Raises:
        UserError: a name that is given twice, or that cannot be part of a file name.
    """
    found: list[tuple[str, str, Literal["model", "student"]]] = []
    kinds: tuple[tuple[Literal["model", "student"], list[str]], ...] = (("model", o.models), ("student", o.students))
    for kind, values in kinds:
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
