"""Which files a command reads and writes: single files, folders, and - for standard input and output."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from diffdistill.cli.codec.parallel import in_order
from diffdistill.cli.paths import check_writable
from diffdistill.data.files import walk
from diffdistill.data.listing import hidden
from diffdistill.errors import UserError
from diffdistill.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

STANDARD = "-"


@dataclass(frozen=True)
class Job:
    """One file to read and one to write.

    Attributes:
        name: for messages.
        read: the file; None for standard input.
        write: the file; None for standard output.
    """

    name: str
    read: Path | None
    write: Path | None

    def content(self) -> bytes:
        """The bytes to read."""
        if self.read is None:
            return sys.stdin.buffer.read()
        try:
            return self.read.read_bytes()
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error.strerror}") from error


def jobs(
    inputs: Sequence[str], out: str, endings: Iterable[str], to: str, overwrite: bool, option: str = "--out"
) -> list[Job]:
    """The files that a command reads, and where each result goes.

    A folder is read with all folders in it, and the output folder mirrors it. A single file goes to `out` if that name
    has an ending, and else into the folder `out`.

    Args:
        inputs: files, folders, or "-".
        out: a file, a folder, or "-".
        endings: of the files that are taken from folders, such as ".png".
        to: the ending of results, such as ".ddc".
        overwrite: whether files that exist are replaced.
        option: the one that names `out`, for messages.

    Raises:
        UserError: an input is missing, two results would have one name, or a result exists.
    """
    if "" in inputs or not out:
        raise UserError(f"{'an input' if '' in inputs else option} is an empty name; . is the current folder")
    if STANDARD in inputs or out == STANDARD:
        if len(inputs) != 1 or inputs[0] != STANDARD and not _is_file(Path(inputs[0])):
            raise UserError("with - there is one input: a file or -")
        read = None if inputs[0] == STANDARD else Path(inputs[0])
        write = None if out == STANDARD else Path(out)
        found = [Job("standard input" if read is None else str(read), read, write)]
    else:
        found = _files(inputs, out, tuple(endings), to, option)
    written: dict[Path, str] = {}
    inputs_of = {job.read.resolve() for job in found if job.read is not None}
    for job in found:
        if job.write is None:
            continue
        if job.write.is_dir():
            raise UserError(f"{job.write} is a folder; name a file for the result of {job.name}")
        if job.write in written:
            raise UserError(f"{written[job.write]} and {job.name} would both be written to {job.write}")
        if job.write.exists() and not overwrite:
            raise UserError(f"{job.write} is there already; add --overwrite or name another")
        if job.write.resolve() in inputs_of:
            raise UserError(f"{job.write} is an input too; name another for the result of {job.name}")
        if job.write.suffix.lower() != to:
            raise UserError(f"the result of {job.name} is a {to} file; {option} {job.write} should end in {to}")
        written[job.write] = job.name
        check_writable(job.write, option)
    return found


def write(job: Job, content: bytes) -> None:
    """Write the result of a job; a file is whole or not there."""
    if job.write is None:
        sys.stdout.buffer.write(content)
    else:
        write_atomic(job.write, content)


def as_png(image: Tensor, grey: bool) -> bytes:
    """A PNG of an image, uint8 (3, H, W); of one channel if it is grey."""
    from PIL import Image

    encoded = io.BytesIO()
    pixels = image[0] if grey else image.permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(encoded, "PNG")
    return encoded.getvalue()


def _files(inputs: Sequence[str], named: str, endings: tuple[str, ...], to: str, option: str) -> list[Job]:
    found, out = [], Path(named)
    into = named.endswith(("/", os.sep)) or out.is_dir() or len(inputs) > 1 or not out.suffix
    into = into or any(Path(name).is_dir() for name in inputs)
    if into and out.suffix.lower() == to and not out.is_dir():
        raise UserError(f"{option} {named} names a file, and there is more than one input or a folder; name a folder")
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            listed = [p for relative, p in walk(path) if not hidden(relative)]
            inside = sorted(p for p in listed if p.suffix.lower() in endings)
            if not inside:
                raise UserError(f"{name} holds no file that ends in {', '.join(endings)}")
            others = {p.suffix.lower() for p in listed} - set(endings)
            if others and option == "--out":  # files of --recon are listed a second time
                kinds = ", ".join(sorted(kind or "no ending" for kind in others)[:5])
                count = len(listed) - len(inside)
                print(f"note: files of {name} that are left out: {count} ({kinds})", file=sys.stderr, flush=True)
            found += [Job(str(p), p, out / p.relative_to(path).with_suffix(to)) for p in inside]
        elif _is_file(path):
            found.append(Job(name, path, out / path.with_suffix(to).name if into else out))
        else:
            raise UserError(f"there is no file {name}")
    return found


def _is_file(path: Path) -> bool:
    """Whether a path can be read as a file; a pipe can."""
    return path.exists() and not path.is_dir()


def run(found: Sequence[Job], work: Callable[[Job], dict[str, Any]], as_json: bool, jobs: int = 1) -> None:
    """Do all jobs. A file that fails is reported, and the others go on. Lines come in the order of the jobs.

    Args:
        found: the jobs.
        work: does one and returns what is said of it; a list is of notices, and stands in brackets if it is not empty.
        as_json: print one JSON object a file rather than a line.
        jobs: how many are done at a time.

    Raises:
        UserError: a file failed.
    """
    quiet = any(job.write is None for job in found)
    failed = []
    progress = _progress(len(found))
    with progress:
        for job, result in in_order(found, work, jobs):
            try:
                said = {"file": job.name, **result()}
            except (UserError, OSError, MemoryError, RuntimeError, ValueError) as error:
                what = str(error) or type(error).__name__
                failed.append(what if job.name in what else f"{job.name}: {what}")
                if len(found) > 1:
                    progress.write(f"diffdistill: error: {' '.join(failed[-1].split())}", file=sys.stderr)
            else:
                line = json.dumps(said) if as_json else _line(said)
                progress.write(line, file=sys.stderr if quiet else sys.stdout)
            progress.update()
    if failed:
        raise UserError(failed[0] if len(found) == 1 else f"{len(failed)} of {len(found)} files failed")


def _line(said: dict[str, Any]) -> str:
    values = [value for value in said.values() if value != []]
    return "  ".join(f"({'; '.join(value)})" if isinstance(value, list) else str(value) for value in values)


class _Lines:
    """Prints lines, where there is no progress bar."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, line: str, file: TextIO) -> None:
        print(line, file=file, flush=True)

    def update(self) -> None:
        pass


def _progress(total: int) -> Any:
    """A progress bar on standard error, if that is a terminal and there are several files."""
    if total < 2 or not sys.stderr.isatty():
        return _Lines()
    from tqdm import tqdm

    return tqdm(total=total, unit="file", file=sys.stderr)
