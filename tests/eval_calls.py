"""`diffdistill eval ...` called in this process: what it says, or the one line it refuses with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
