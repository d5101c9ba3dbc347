"""`diffdistill eval calc`: distances of stored pictures, or of a generator as it runs, to a reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.eval.options import (
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


def main(argv: Sequence[str]) -> None:
    """Distances to a reference, of stored pictures (--images) or of a generator (--model and --prompts)."""
    from diffdistill.evaluation.measure import METRICS

    parser = parser_of("calc", main.__doc__ or "")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", help="folder, .zip, .npz, .tar, folder of .tar shards, emoji set")
    what.add_argument("--model", help="pipeline folder or hub id: its pictures are measured as they are made")
    generator_options(parser)
    parser.add_argument("--reference", required=True, help="what `eval ref` wrote, or pictures")
    parser.add_argument("--metrics", nargs="+", default=["fd", "kd"], metavar="METRIC", help=", ".join(METRICS))
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    parser.add_argument("--overwrite", action="store_true")
    o = parse(parser, argv)
    if o.out is not None:
        check_free(o.out, o.overwrite)

    from diffdistill.evaluation import write_json_atomic
    from diffdistill.evaluation.measure import ROWS, check_metrics, collect, distances, how_many, read_reference

    source = source_of(o)
    protocol, extractor = protocol_of(o)
    check_metrics(o.metrics, how_many(source, protocol, o.pictures), extractor.name)  # before a reference is measured
    rows = any(name in ROWS for name in o.metrics)
    reference = read_reference(find(o.reference), protocol, extractor, rows, reading_of(o))
    generated = collect(source, protocol, extractor, o.pictures, rows, reading_of(o))
    report = {"pictures": source.name, **source.made_from(), **distances(generated, reference, o.metrics)}
    if is_first():
        print(json.dumps(report, indent=1), flush=True)
        if o.out is not None:
            write_json_atomic(o.out, report)
