"""`diffdistill codec COMMAND`: compress images, and back. Each command is one file, imported only when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from diffdistill.cli.arguments import command_of

COMMANDS = {
    "encode": "compress images to .ddc files",
    "decode": "turn .ddc files into PNG images",
    "info": "show what the header of a .ddc file says; needs no model",
    "eval": "compare the codec with JPEG, WebP, AVIF and JPEG XL, as a page",
    "bench": "time the codec, and show where the time goes",
}


def main(argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`; `diffdistill codec COMMAND --help` says more.

    Raises:
        UserError: bad input, in one line.
    """
    if (name := command_of("codec", COMMANDS, argv)) is not None:
        importlib.import_module(f"diffdistill.cli.codec.{name}").main(argv[1:])
