"""`diffdistill eval calc`: distances to a reference and agreement with captions, of stored or of generated pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.eval.agreement import (
    agreement_numbers,
    agreement_options,
    captions_of,
    check_agreement,
    towers_of,
)
from diffdistill.cli.eval.options import (
    check_free,
    generator_options,
    is_first,
    left_out_of,
    parse,
    parser_of,
    protocol_of,
    reading_of,
    source_of,
)
from diffdistill.cli.paths import find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.evaluation.distances.states import FeatureRows
    from diffdistill.evaluation.features.base import Extractor
    from diffdistill.evaluation.measure import Features
    from diffdistill.evaluation.protocols import Protocol

METRICS = ("fd", "kd")  # by default


def main(argv: Sequence[str]) -> None:
    """Numbers of stored pictures (--images), or of a generator (--model and --prompts)."""
    parser = parser_of("calc", main.__doc__ or "")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", help="folder, .zip, .npz, .tar, folder of .tar shards, emoji set")
    what.add_argument("--model", help="pipeline folder or hub id: its pictures are measured as they are made")
    generator_options(parser)
    parser.add_argument("--reference", help="what `eval ref` wrote, or pictures; needed for distances")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="fd and kd by default; also prdc, cmmd")
    of_floor = parser.add_mutually_exclusive_group()
    of_floor.add_argument("--real", metavar="PATH", help="real pictures: what they score is reported as the floor")
    of_floor.add_argument(
        "--split_reference", action="store_true", help="set a part of the reference aside, for the floor, instead"
    )
    agreement_options(parser)
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    parser.add_argument("--overwrite", action="store_true")
    o = parse(parser, argv)
    _check(o)

    from diffdistill.evaluation.distances.states import FeatureRows
    from diffdistill.evaluation.measure import ROWS, Pass, check_metrics, collect_several, distances, how_many
    from diffdistill.evaluation.protocols import protocol_named
    from diffdistill.files import write_json_atomic

    protocol, metrics = protocol_named(o.protocol), o.metrics or METRICS
    source = source_of(o)
    n, rows, passes = how_many(source, protocol, o.pictures), any(name in ROWS for name in metrics), []
    captions, pairing = captions_of(o, source, n) if o.agreement else ([], {})
    if o.reference:
        passes.append(Pass(protocol_of(o)[1], rows))
        check_metrics(metrics, n, passes[0].extractor.name)  # before a reference is measured
    if o.agreement:
        towers = towers_of(o, protocol)
        passes.append(Pass(towers))
    if o.reference:
        reference, aside, left_out_of_real = _real_pictures(o, protocol, passes[0].extractor, metrics, n, rows)
    found = collect_several(source, protocol, passes, o.pictures, reading_of(o))
    if not is_first():
        return
    report: dict[str, Any] = {"pictures": source.name, **source.made_from()}
    if left_out := left_out_of(source, n - found[0].n):
        report["left_out"] = left_out
    if o.reference:
        report |= left_out_of_real
    if o.reference:
        report |= distances(found[0], reference, metrics)
        if aside is not None:
            floor = distances(aside, reference, metrics)  # its reference and protocol are those beside it
            numbers = {key: value for key, value in floor.items() if key not in ("reference", "protocol")}
            report["floor"] = {"pictures": aside.source, **numbers}
    if o.agreement:
        assert isinstance(found[-1], FeatureRows)
        report |= {"n": found[-1].n, "captions": pairing, **agreement_numbers(towers, found[-1], captions)}
    print(json.dumps(report, indent=1), flush=True)
    if o.out is not None:
        write_json_atomic(o.out, report)


def _check(o: argparse.Namespace) -> None:
    """What is wrong with the options alone."""
    for name in ("metrics", "real", "split_reference"):
        if getattr(o, name) and not o.reference:
            raise UserError(f"--{name} needs --reference")
    if not (o.reference or o.agreement):
        raise UserError("there is nothing to measure: add --reference for distances, --agreement for captions, or both")
    if o.real and Path(find(o.real)).resolve() == Path(find(o.reference)).resolve():
        raise UserError("--real is the reference itself; --split_reference sets a part of it aside")
    if o.real and not Path(find(o.real)).exists():
        raise UserError(f"there are no pictures at {o.real}")
    check_agreement(o)
    if o.out is not None:
        check_free(o.out, o.overwrite)


def _real_pictures(
    o: argparse.Namespace, protocol: Protocol, extractor: Extractor, metrics: Sequence[str], n: int, rows: bool
) -> tuple[Features, FeatureRows | None, dict[str, dict[str, int]]]:
    """The reference, as many other real pictures as there are generated, where the floor is asked for, and for the
    report what was left out of either.

    The latter are drawn from --real, or from the reference (at most half of it), which is then without them.
    """
    from diffdistill.data.sources import open_source
    from diffdistill.evaluation.distances.floor import set_aside
    from diffdistill.evaluation.distances.states import FeatureRows
    from diffdistill.evaluation.measure import SUFFIX, check_metrics, read_reference

    left_out: dict[str, dict[str, int]] = {}

    def read(option: str, rows: bool) -> Features:
        path = find(getattr(o, option))
        features = read_reference(path, protocol, extractor, rows, reading_of(o))
        if Path(path).suffix != SUFFIX:  # of such a file it was said when it was made
            source = open_source(path)
            if found := left_out_of(source, len(source) - features.n):
                left_out[f"left_out_of_{option}"] = found
        return features

    reference = read("reference", rows or o.split_reference)
    if not (o.real or o.split_reference):
        return reference, None, left_out
    if o.split_reference:
        assert isinstance(reference, FeatureRows)
        aside, reference = set_aside(reference, min(n, reference.n // 2))
    else:
        real = read("real", True)
        assert isinstance(real, FeatureRows)
        aside = set_aside(real, min(n, real.n))[0]
    try:
        check_metrics(metrics, min(aside.n, reference.n), extractor.name)
    except UserError as error:
        raise UserError(f"the floor: {error}") from error
    return reference, aside, left_out
