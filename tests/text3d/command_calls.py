"""Calls of `diffdistill text3d generate` and `render` with a tiny model, and what they say."""

import json

import pytest

from diffdistill.cli.main import main
from diffdistill.text3d import Ring

QUICK = ("--resolution", "20")
VIEWS = ("--views", "3", "--size", "24")
RING = Ring(views=3, size=24)


def generate(model: str, *argv: object) -> int:
    return main(["text3d", "generate", "--model", model, *QUICK, *map(str, argv)])


def render(model: str, *argv: object) -> int:
    return main(["text3d", "render", "--model", model, *map(str, argv)])


def said_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], command: str, *argv: object) -> str:
    """The one line of an error."""
    assert main(["text3d", command, *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("diffdistill: error: ")
    return line
