"""`diffdistill eval COMMAND`: references, numbers, images. Each command is one file, imported only when it is called.

A command writes JSON to stdout and progress to stderr. A command that measures gives the same numbers on several
processes: `accelerate launch eval/calc.py ...` or `torchrun --nproc_per_node 2 eval/calc.py ...`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from diffdistill.cli.arguments import command_of
from diffdistill.cli.eval.options import processes

COMMANDS = {
    "ref": "measure the features of real images, and keep them in one file",
    "compare": "compare students with their teacher on several encoders: distances and variety",
    "calc": "measure the distance of images, or of a generator, to a reference",
    "pairs": "measure how far each image is from its original",
    "gen": "write a generator's images to a folder, also in the layout of other tools",
    "report": "write the results of a sweep as one HTML page",
    "probe": "measure what the features of networks tell, for each block and noise level",
    "sweep": "measure generators over steps, guidance and seeds; can be resumed",
}


def main(argv: Sequence[str]) -> None:
    """Run one of `COMMANDS`; `diffdistill eval COMMAND --help` says more.

    Raises:
        UserError: bad input, in one line.
    """
    if (name := command_of("eval", COMMANDS, argv)) is not None:
        with processes():
            importlib.import_module(f"diffdistill.cli.eval.{name}").main(argv[1:])
