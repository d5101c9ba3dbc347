"""`diffdistill eval ref`: features of real images, kept in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.eval.options import check_free, is_first, parse, parser_of, protocol_of, reading_of
from diffdistill.cli.paths import find
from diffdistill.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Measure real images once: `--images PATH --protocol NAME --out FILE.safetensors`."""
    parser = parser_of("ref", main.__doc__ or "")
    parser.add_argument(
        "--images", required=True, help="images: a folder, .zip, .npz, .tar, folder of .tar shards, or emoji set"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file of features, ending in .safetensors")
    parser.add_argument("--statistics", action="store_true", help="keep only mean and scatter, which is enough for fd")
    parser.add_argument("--overwrite", action="store_true", help="replace the file --out")
    o = parse(parser, argv)
    if o.out.suffix != ".safetensors":
        raise UserError(f"--out {o.out} should end in .safetensors")
    check_free(o.out, o.overwrite)

    from diffdistill.data.sources import open_source
    from diffdistill.evaluation.measure import collect, left_out_of

    source = open_source(find(o.images))
    protocol, extractor = protocol_of(o)
    features = collect(source, protocol, extractor, o.pictures or len(source), not o.statistics, reading_of(o))
    if is_first():
        features.save(o.out)
        left_out = left_out_of(source, (o.pictures or len(source)) - features.n)
        said = {"file": str(o.out), "n": features.n, "protocol": features.protocol}
        print(json.dumps({**said, "left_out": left_out} if left_out else said, indent=1))
