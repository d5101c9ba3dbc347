"""`diffdistill text3d COMMAND`: objects of prompts. Each command is one file, imported only when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from diffdistill.cli.arguments import command_of

COMMANDS = {
    "generate": "make 3D objects of prompts: GLB, PLY or OBJ files, a page, a turntable",
    "render": "make pictures around the objects of prompts, without a mesh",
    "eval": "measure the objects that a model makes of its prompts",
}


def main(argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`; `diffdistill text3d COMMAND --help` says more.

    Raises:
        UserError: bad input, in one line.
    """
    if (name := command_of("text3d", COMMANDS, argv)) is not None:
        importlib.import_module(f"diffdistill.cli.text3d.{name}").main(argv[1:])
