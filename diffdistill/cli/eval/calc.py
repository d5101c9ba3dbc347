"""`diffdistill eval calc`: distances to a reference and agreement with captions, of stored or generated images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.eval.agreement import agreement_options, captions_of, check_agreement, towers_of
from diffdistill.cli.eval.options import (
    METRICS_HELP,
    check_free,
    generator_options,
    is_first,
    parse,
    parser_of,
    protocol_of,
    reading_of,
    source_of,
)
from diffdistill.cli.paths import find
from diffdistill.errors import UserError

METRICS = ("fd", "kd")  # by default


def main(argv: Sequence[str]) -> None:
    """Measure stored images (--images), or a generator (--model and --prompts), against a reference."""
    parser = parser_of("calc", main.__doc__ or "")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", help="images: a folder, .zip, .npz, .tar, folder of .tar shards, or emoji set")
    what.add_argument("--model", help="a pipeline folder or hub id, whose images are measured as they are made")
    generator_options(parser)
    parser.add_argument("--reference", help="a file that `eval ref` wrote, or real images; distances need it")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help=f"{METRICS_HELP}; by default fd and kd")
    of_floor = parser.add_mutually_exclusive_group()
    of_floor.add_argument("--real", metavar="PATH", help="other real images, whose distance is reported as the floor")
    of_floor.add_argument(
        "--split_reference", action="store_true", help="take the floor from images set aside from the reference"
    )
    agreement_options(parser)
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file --out")
    o = parse(parser, argv)
    _check(o)

    from diffdistill.evaluation.measure import how_many
    from diffdistill.evaluation.metrics import check_metrics
    from diffdistill.evaluation.protocols import protocol_named
    from diffdistill.evaluation.report import evaluate
    from diffdistill.files import write_json_atomic

    protocol, metrics = protocol_named(o.protocol), o.metrics or METRICS
    source = source_of(o)
    n = how_many(source, protocol, o.pictures)  # what is wrong here is said before any network is loaded
    captions = captions_of(o, source, n) if o.agreement else None
    if o.reference:
        check_metrics(metrics, n, protocol.extractor)
    report = evaluate(
        source,
        find(o.reference) if o.reference else None,
        metrics,
        protocol,
        n=o.pictures,
        extractor=protocol_of(o)[1] if o.reference else None,
        real=find(o.real) if o.real else None,
        split_reference=o.split_reference,
        towers=towers_of(o, protocol) if o.agreement else None,
        captions=captions,
        reading=reading_of(o),
    )
    if not is_first():
        return
    print(json.dumps(report, indent=1), flush=True)
    if o.out is not None:
        write_json_atomic(o.out, report)


def _check(o: argparse.Namespace) -> None:
    """Raise UserError for what is wrong with the options alone."""
    for name in ("metrics", "real", "split_reference"):
        if getattr(o, name) and not o.reference:
            raise UserError(f"--{name} needs --reference")
    if not (o.reference or o.agreement):
        raise UserError("there is nothing to measure: add --reference for distances, --agreement for captions, or both")
    if o.real and Path(find(o.real)).resolve() == Path(find(o.reference)).resolve():
        raise UserError("--real is the reference itself; --split_reference sets a part of the reference aside")
    if o.real and not Path(find(o.real)).exists():
        raise UserError(f"there are no images at {o.real}")
    check_agreement(o)
    if o.out is not None:
        check_free(o.out, o.overwrite)
