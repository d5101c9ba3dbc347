"""`diffdistill eval COMMAND`: references, numbers, pictures. One file a command, each read only when called.

JSON on stdout, progress on stderr. Every command that measures runs on several processes as it does on one:
`accelerate launch eval/calc.py ...` or `torchrun --nproc_per_node 2 eval/calc.py ...`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from diffdistill.cli.eval.options import processes
from diffdistill.errors import UserError

COMMANDS = {
    "ref": "features of real pictures, kept in one file",
    "calc": "distances of pictures, or of a generator, to a reference",
    "pairs": "how far pictures are from their originals, one by one",
    "gen": "pictures of a generator into a folder, in the layout of other tools where asked for",
    "report": "what a sweep found, as one HTML page",
    "sweep": "pipelines over steps, guidance and seeds, resumable",
}


def main(argv: Sequence[str]) -> None:
    """One of `COMMANDS`; `diffdistill eval COMMAND --help` says more.

    Raises:
        UserError: bad input, in one line.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: diffdistill eval COMMAND ...\n\n" + "".join(f"  {k:8}{v}\n" for k, v in COMMANDS.items()), end="")
        return
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command eval {name!r}; {hint}")
    with processes():
        importlib.import_module(f"diffdistill.cli.eval.{name}").main(arguments[1:])
