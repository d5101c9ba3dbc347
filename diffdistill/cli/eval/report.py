"""`diffdistill eval report`: the results of a sweep as one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.eval.options import check_free, is_first
from diffdistill.data.text_files import check_text
from diffdistill.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Write the results of a sweep as one HTML page: `--sweep FOLDER`, which `diffdistill eval sweep` wrote."""
    parser = OneLineParser(prog="diffdistill eval report", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--sweep", type=Path, required=True, help="the folder that holds sweep.json")
    parser.add_argument("--out", type=Path, help="the page; by default report.html in the sweep's folder")
    parser.add_argument("--title", help="title of the page; by default it names the generators")
    parser.add_argument("--overwrite", action="store_true", help="replace the page")
    o = parser.parse_args(list(argv))
    out = o.out if o.out is not None else o.sweep / "report.html"
    if out.suffix != ".html":
        raise UserError(f"--out {out} should end in .html")
    check_text(o.title or "", "--title")

    from diffdistill.evaluation.page.report import html_report
    from diffdistill.files import write_atomic

    if not is_first():
        return
    check_free(out, o.overwrite)
    page = html_report(o.sweep, o.title).encode()
    write_atomic(out, page)
    print(json.dumps({"report": str(out), "bytes": len(page)}))
