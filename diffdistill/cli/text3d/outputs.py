"""The files that a command will write. They are checked together, before any work is done."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from diffdistill.cli.paths import check_writable
from diffdistill.errors import UserError


class Output(NamedTuple):
    """A file to write.

    Attributes:
        path: where.
        option: that names it, or its folder.
    """

    path: Path
    option: str


def is_folder(out: str, objects: int, endings: Collection[str]) -> bool:
    """Whether `out` names a folder: it is one, ends in a slash, has no ending, or is to hold several objects.

    Args:
        out: as it was given.
        objects: how many files there will be.
        endings: of single files.

    Raises:
        UserError: several objects are to go into one file, or a file has another ending.
    """
    path = Path(out)
    if path.is_dir() or out.endswith("/") or not path.suffix:
        return True
    known = path.suffix.lower() in endings
    if objects == 1 and not known:
        raise UserError(f"--out {out} ends in {path.suffix}; it must end in {', '.join(endings)}, or name a folder")
    if objects > 1 and known:
        raise UserError(f"--out {out} is one file, and there are {objects} objects; name a folder")
    return objects > 1


def check_ending(path: Path, option: str, endings: Sequence[str]) -> None:
    """Raise UserError where a file has another ending than those given; for .mp4, also where there is no ffmpeg."""
    ending = path.suffix.lower()
    if ending not in endings:
        raise UserError(f"{option} {path} ends in {ending or 'nothing'}; it must end in {', '.join(endings)}")
    if ending == ".mp4" and not shutil.which("ffmpeg") and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UserError(f"{option} {path} needs the program ffmpeg; install it, or pip install imageio-ffmpeg, or "
                        "name a .gif")  # fmt: skip


def check_outputs(outputs: Iterable[Output], overwrite: bool) -> None:
    """Check that all files can be written.

    Raises:
        UserError: two outputs are one file, one is a folder or is in a place that cannot be written to, or one is there
            already and may not be replaced.
    """
    seen: dict[Path, str] = {}
    for path, option in outputs:
        place = path.resolve()
        if place in seen:
            raise UserError(f"{path} would be written twice, for {seen[place]} and for {option}; name another file")
        seen[place] = option
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file")
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise UserError(f"{path} is there already; add --overwrite or name another")
        check_writable(path, option)


@contextmanager
def writing() -> Iterator[None]:
    """Within the block, a file that cannot be written, as where the disk is full, is a UserError."""
    try:
        yield
    except BrokenPipeError:  # of what is printed, where the reader has ended; it is no file
        raise
    except OSError as error:
        raise UserError(f"{error.filename or 'a file'} cannot be written: {error.strerror}") from error
