"""The `diffdistill` command: it runs a subcommand, and turns an error into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from diffdistill import __version__
from diffdistill.errors import UserError

COMMANDS = {
    "quickstart": "distil the embedded teacher, and show images and numbers",
    "train": "train a recipe from its config file",
    "generate": "draw images with a pipeline folder, a teacher's or a student's",
    "eval": "measure images and generators under a named protocol",
    "codec": "compress images with a trained codec",
    "text3d": "make 3D objects of prompts",
}
USAGE = "usage: diffdistill [--version] COMMAND ...\n\n" + "".join(f"  {k:12}{v}\n" for k, v in COMMANDS.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0, 2 for bad input, 130 after an interrupt, or 141 if stdout ends."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\nFor the options of a command see diffdistill COMMAND --help.")
        return 0
    if arguments[0] == "--version":
        print(f"diffdistill {__version__}")
        return 0
    return guard(lambda: _command(arguments[0])(arguments[1:]))


def guard(work: Callable[[], None]) -> int:
    """Run `work`; a UserError, or a file that cannot be used, becomes one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be valid text
    try:
        work()
    except UserError as error:
        print(f"diffdistill: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `| head`: what reads the lines has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None or error.strerror is None:  # of no file: a fault of the program
            raise
        print(f"diffdistill: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffdistill: interrupted", file=sys.stderr)
        return 130
    return 0


def _command(name: str) -> Callable[[Sequence[str]], None]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    command: Callable[[Sequence[str]], None] = importlib.import_module(f"diffdistill.cli.{name}").main
    return command


if __name__ == "__main__":
    sys.exit(main())
