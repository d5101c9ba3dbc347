"""`diffdistill codec COMMAND`: compress images, and back. Each command is one file, imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from diffdistill.errors import UserError

COMMANDS = {
    "encode": "compress images to .ddc files",
    "decode": "turn .ddc files into PNG images",
    "info": "show what the header of a .ddc file says; needs no model",
}


def main(argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`; `diffdistill codec COMMAND --help` says more.

    Raises:
        UserError: bad input, in one line.
    """
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: diffdistill codec COMMAND ...\n\n" + "".join(f"  {k:8}{v}\n" for k, v in COMMANDS.items()), end=""
        )
        return
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command codec {name!r}; {hint}")
    importlib.import_module(f"diffdistill.cli.codec.{name}").main(arguments[1:])
