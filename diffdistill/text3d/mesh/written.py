"""Files of meshes are whole or absent, and replace others only where this is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffdistill.errors import UserError
from diffdistill.files import write_atomic


def check_free(path: Path, overwrite: bool) -> None:
    """Raise UserError where `path` is a folder, or is a file that may not be replaced."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already; ask for it to be overwritten, or name another")


def write_files(files: Mapping[Path, bytes], overwrite: bool) -> None:
    """Write files, each in one rename, in their order. None is written where one may not be.

    Raises:
        UserError: one is there already and `overwrite` is false, or is a folder.
    """
    for path in files:
        check_free(path, overwrite)
    for path, data in files.items():
        write_atomic(path, data)
