"""`diffdistill codec info photo.ddc`: what the header says. It needs no model and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.codec.jobs import STANDARD, Job, run
from diffdistill.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Show the size, quality and model of .ddc files, after their checksums are checked.

    Raises:
        UserError: a file is missing, damaged, or of another kind.
    """
    parser = OneLineParser(prog="diffdistill codec info", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=".ddc files, or - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    o = parser.parse_args(list(argv))

    from diffdistill.codec.bitstream import from_bytes

    def work(job: Job) -> dict[str, Any]:
        data = job.content()
        coded = from_bytes(data, job.name)
        bpp = 8 * len(data) / (coded.width * coded.height)
        found = {
            "width": coded.width,
            "height": coded.height,
            "bytes": len(data),
            "bpp": round(bpp, 5),
            "quality": coded.quality,
            "model": coded.model.hex(),
            "grey": coded.grey,
            "integers_checked": coded.integers_crc is not None,
        }
        if o.json:
            return found
        size = f"{coded.width}x{coded.height}"
        return {"size": size, "bytes": f"{len(data):,} bytes", "bpp": f"{bpp:.4f} bpp",
                "quality": f"quality {coded.quality}", "model": f"model {coded.model.hex()}",
                "notices": ["grey"] if coded.grey else []}  # fmt: skip

    for name in o.inputs:
        if name != STANDARD and not Path(name).exists():
            raise UserError(f"there is no file {name}")
        if Path(name).is_dir():
            raise UserError(f"{name} is a folder; name .ddc files")
    found = [
        Job("standard input" if n == STANDARD else n, None if n == STANDARD else Path(n), Path(n)) for n in o.inputs
    ]
    run(found, work, o.json)
