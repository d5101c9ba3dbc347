"""`diffdistill eval ...` called in this process: what it says, or the one line it refuses with."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from processes import in_two_processes

from diffdistill.cli.main import main


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    capsys.readouterr()
    assert main(["eval", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(["eval", *argv]) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]  # above it may stand a progress bar
    assert captured.out == "" and line.startswith("diffdistill: error: ") and captured.err.count("diffdistill: ") == 1
    return line


def in_two(argv: Sequence[str], align: Callable[[], ModuleType] | None = None) -> None:
    """`diffdistill eval ARGV` in two processes, in this one's working directory and with its cache.

    Args:
        argv: the subcommand and its options.
        align: makes the module that stands in for `evaluation.agreement.align`.
    """
    cache = {key: value for key, value in os.environ.items() if key == "DIFFDISTILL_CACHE"}
    in_two_processes(_eval_in, os.getcwd(), list(argv), align, **cache)


def _eval_in(folder: str, argv: list[str], align: Callable[[], ModuleType] | None) -> None:
    from diffdistill.cli.eval import main as evaluate

    os.chdir(folder)
    if align is not None:
        sys.modules["diffdistill.evaluation.agreement.align"] = align()
    evaluate(argv)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch, as each of several processes has: kernels round differently at other numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def noise(folder: str, n: int, seed: int, side: int = 8, top: int = 256) -> Path:
    """A folder of n images of noise below `top`."""
    path, draw = Path(folder), np.random.default_rng(seed)
    path.mkdir()
    for i in range(n):
        Image.fromarray(draw.integers(0, top, (side, side, 3), dtype=np.uint8)).save(path / f"{i:02d}.png")
    return path
