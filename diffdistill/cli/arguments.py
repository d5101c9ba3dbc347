"""A parser whose errors are one line and name the nearest option, and errors of the library in terms of options."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from diffdistill.errors import UserError


def add_eta(parser: argparse.ArgumentParser) -> None:
    """Add the option --eta of a command that samples; its value is None where it is not given."""
    help_text = "noise while sampling, from 0 (none) to 1 (ancestral); by default the model's own, which is mostly 0"
    parser.add_argument("--eta", type=_eta, help=help_text)


def _eta(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise UserError(f"--eta is {value:g}; it must be from 0 to 1")
    return value


def command_of(group: str, commands: Mapping[str, str], argv: Sequence[str]) -> str | None:
    """The command that the first argument names; None after the usage was printed.

    Args:
        group: the command that has them, such as "eval".
        commands: what each does, by name.
        argv: the arguments.

    Raises:
        UserError: there is no such command.
    """
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, commands)) + 2
        lines = [f"  {name:{width}}{what}\n" for name, what in commands.items()]
        print(f"usage: diffdistill {group} COMMAND ...\n\n" + "".join(lines), end="")
        return None
    if argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}"
        raise UserError(f"unknown command {group} {argv[0]!r}; {hint}")
    return argv[0]


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse would print its usage and exit. Options cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message, or with the nearest option for one that does not exist."""
        odd = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if odd:
            near = difflib.get_close_matches(odd[1], self._option_string_actions, 1, cutoff=0.0)
            message = f"unknown option {odd[1]}; the nearest is {near[0]}"
        raise UserError(f"{message} (see {self.prog} --help)")


@contextmanager
def as_options(**options: str) -> Iterator[None]:
    """Within the block, errors of a settings class name the command's options: "images is 0" becomes "--pictures is 0".

    Args:
        options: for each field, the option that sets it.
    """
    try:
        yield
    except UserError as error:
        first, space, rest = str(error).partition(" ")
        raise UserError(f"{options.get(first, first)}{space}{rest}") from error
