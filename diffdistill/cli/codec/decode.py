"""`diffdistill codec decode photo.ddc -o photo.png`: the images of .ddc files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.codec.jobs import Job, as_png, jobs, run, write
from diffdistill.cli.codec.model import add_model, open_model
from diffdistill.cli.codec.parallel import add_jobs, check_jobs


def main(argv: Sequence[str]) -> None:
    """Turn .ddc files into PNG images: one file, several files, or folders, which the output folder mirrors.

    Raises:
        UserError: bad input; no file is left half-written.
    """
    parser = OneLineParser(prog="diffdistill codec decode", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="IN", help=".ddc files, folders of them, or - for standard input")
    parser.add_argument("-o", "--out", required=True, help="a .png file, a folder, or - for standard output")
    add_model(parser)
    add_jobs(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    o = parser.parse_args(list(argv))
    check_jobs(o.jobs)
    found = jobs(o.inputs, o.out, (".ddc",), ".png", o.overwrite)

    from diffdistill.codec.bitstream import from_bytes

    codec = open_model(o)

    def work(job: Job) -> dict[str, Any]:
        begin = time.perf_counter()
        data = job.content()
        image = codec.decode(data, job.name)
        took = time.perf_counter() - begin
        grey = from_bytes(data).grey
        write(job, as_png(image, grey))
        height, width = image.shape[1:]
        return {"size": f"{width}x{height}", "seconds": round(took, 3) if o.json else f"{took:.2f} s",
                "notices": ["grey"] if grey else []}  # fmt: skip

    run(found, work, o.json, o.jobs)
