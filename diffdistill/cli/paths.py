"""Finds the files that configs name, and checks whether a path can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from diffdistill.data.text_files import split_column
from diffdistill.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def find(path: str) -> str:
    """The path itself if it exists; otherwise the path in the repository's root if that exists."""
    file, column = split_column(path)
    if not file or Path(file).exists():
        return path
    inside = ROOT / file
    return (str(inside) if column is None else f"{inside}::{column}") if inside.exists() else path


def check_writable(path: Path, option: str) -> None:
    """Raise UserError where a path cannot be written, so that the error comes before the work and not after it."""
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if above != path and not above.is_dir():
        raise UserError(f"{option} {path}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK):
        raise UserError(f"{option} {path}: {above} is not writable")
