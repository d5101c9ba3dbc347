"""`diffdistill eval gen`: write a generator's images to a folder, also in the layout of other tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from diffdistill.cli.eval.options import generator_options, is_first, parse, parser_of, prompt_records, source_of
from diffdistill.cli.paths import check_writable
from diffdistill.errors import UserError

NAMES = 100_000


def main(argv: Sequence[str]) -> None:
    """Write a generator's images: `--model DIR --prompts FILE --out FOLDER`."""
    from diffdistill.cli.eval.layouts import LAYOUTS

    parser = parser_of("gen", main.__doc__ or "", measures=False)
    parser.add_argument("--model", required=True, help="a pipeline folder or hub id")
    generator_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="plain", help="the layout of files that another tool expects"
    )
    parser.add_argument("--per_prompt", type=int, default=1, help="number of images for each prompt")
    parser.add_argument(
        "--protocol", help="how floats become bytes: truncated, where the protocol truncates; by default rounded"
    )
    o = parse(parser, argv)
    if o.per_prompt < 1:
        raise UserError(f"--per_prompt is {o.per_prompt}; it must be at least 1")
    check_writable(o.out, "--out")
    taken = o.out.exists() and any(o.out.iterdir() if o.out.is_dir() else [o.out])
    from diffdistill.data.loading import batches, share
    from diffdistill.data.save import save_bytes
    from diffdistill.evaluation.features.base import to_uint8
    from diffdistill.evaluation.measure import from_all_processes
    from diffdistill.evaluation.protocols import protocol_named

    if (o.pictures or 0) > NAMES:
        raise UserError(f"--pictures is {o.pictures}; file names have five digits, which allows {NAMES} images")
    if from_all_processes(taken)[0]:  # as the first process saw it, so that no process writes where another refuses
        raise UserError(f"{o.out} is there already; name a new folder")
    truncate = o.protocol is not None and protocol_named(o.protocol).quantisation == "uint8-truncate"
    source = source_of(o, per_prompt=o.per_prompt)
    layout = LAYOUTS[o.layout]
    made = batches(source, share(len(source)), o.batch_size, prepare=lambda image: to_uint8(image, truncate))
    first = next(made, None)  # an error in the first batch leaves no folder
    from_all_processes(True)
    if is_first():
        records = [record for record in prompt_records(o) for _ in range(o.per_prompt)]
        layout.begin(o.out, [records[i % len(records)] for i in range(len(source))], o.per_prompt)
    from_all_processes(True)
    for batch in chain([] if first is None else [first], made):
        for index, image in zip(batch.indices, batch.images, strict=True):
            save_bytes(layout.path(o.out, index, o.per_prompt), image)
    from_all_processes(True)  # all have written before this is said
    if is_first():
        print(json.dumps({"folder": str(o.out), "n": len(source)}))
