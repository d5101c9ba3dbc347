"""Images that are files in a folder, a zip or tar shards. One rule lists, orders and captions them in all three."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import threading
import zipfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffdistill.data.decode import DECODING, MAX_PIXELS, CorruptPictureError
from diffdistill.data.listing import Listing, arrange, order_of, with_links
from diffdistill.data.source import Source
from diffdistill.errors import UserError

MAX_BYTES = 4 * MAX_PIXELS  # of one image's file
_BLOCK = 512  # of a tar
_LONGEST_PATH = 4096
_Member = tuple[Path, int, int, tarfile.TarInfo | None]  # file, offset, size, and its header if it is sparse


class Files(Source):
    """Images of a `Listing`; a subclass says how the bytes at a place are read.

    Args:
        name: name of the source.
        listings: one listing, or one for each shard in order, after the shard's name; images are labelled SHARD/NAME.
    """

    decoding = DECODING
    captions_from = "a file beside each image"

    def __init__(self, name: str, listings: Sequence[tuple[str, Listing[Any]]]) -> None:
        self.name = name
        self.left_out = Counter()
        self._pictures: list[tuple[str, str, Any]] = []  # shard, name inside, place
        self._captions: dict[tuple[str, str], list[tuple[str, Any]]] = {}
        for shard, listing in listings:
            self._pictures += [(shard, inside, place) for inside, place in listing.pictures]
            self._captions |= {(shard, inside): found for inside, found in listing.captions.items()}
            self.left_out += listing.left_out

    @abstractmethod
    def _bytes(self, place: Any) -> bytes:
        """The bytes that are stored at a place.

        Raises:
            CorruptPictureError: they cannot be read; the message gives the reason, without the name of the source.
        """

    def __len__(self) -> int:
        return len(self._pictures)

    def label(self, index: int) -> str:
        shard, inside, _ = self._pictures[index]
        return f"{shard}/{inside}" if shard else inside

    def path(self, index: int) -> str:
        return self._pictures[index][1]

    def read_bytes(self, index: int) -> bytes:
        return self._named(self._pictures[index][2], self.label(index))

    def captions(self) -> list[str] | None:
        from diffdistill.data.captions import caption_of_files

        if not self._captions:
            return None
        found = []
        for index, (shard, inside, _) in enumerate(self._pictures):
            beside = self._captions.get((shard, inside))
            if beside is None:
                raise UserError(f"{self.name}: {self.label(index)} has no caption beside it, but other images do")
            files = [(name, self._named(place, name)) for name, place in beside]
            found.append(caption_of_files(files, f"{self.name}: {self.label(index)}"))
        return found

    def _named(self, place: Any, name: str) -> bytes:
        try:
            return self._bytes(place)
        except CorruptPictureError as error:
            raise CorruptPictureError(f"{self.name}: {name} {error}") from error


class Folder(Files):
    """Image files in a folder, at any depth and behind links too.

    Args:
        path: the folder.
        files: what `walk` found in it, if that is known already.
    """

    def __init__(self, path: Path, files: Sequence[tuple[str, Path]] | None = None) -> None:
        found = walk(path) if files is None else files
        super().__init__(str(path), [("", arrange((name, file if file.is_file() else None) for name, file in found))])

    def _bytes(self, place: Path) -> bytes:
        try:
            if (size := place.stat().st_size) > MAX_BYTES:
                raise CorruptPictureError(f"is {size:,} bytes; at most {MAX_BYTES:,} are read")
            return place.read_bytes()
        except OSError as error:
            raise CorruptPictureError(f"cannot be read: {error.strerror}") from error


class Zip(Files):
    """Image files in a zip.

    Args:
        path: the zip.

    Raises:
        UserError: the file is no zip, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
            entries = [(_name_of(entry), entry) for entry in self._zip.infolist() if not entry.is_dir()]
            links = [item for item in entries if stat.S_ISLNK(item[1].external_attr >> 16)]
            targets = [(name, posixpath.join(posixpath.dirname(name), self._target(entry))) for name, entry in links]
        except Exception as error:  # zipfile raises many kinds of error for a damaged zip
            raise UserError(f"{path} is no readable zip: {error}") from error
        files = [item for item in entries if item not in links]
        super().__init__(str(path), [("", arrange(with_links(files, targets)))])

    def _target(self, entry: zipfile.ZipInfo) -> str:
        """The target of a link, which a zip stores as the link's content."""
        if entry.file_size > _LONGEST_PATH:
            raise ValueError(f"{entry.filename} is a link with a target of {entry.file_size:,} bytes")
        return self._zip.read(entry).decode("utf-8", "replace")

    def _bytes(self, place: zipfile.ZipInfo) -> bytes:
        if place.file_size > MAX_BYTES:
            raise CorruptPictureError(f"would unpack to {place.file_size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            with self._lock:
                return self._zip.read(place)
        except Exception as error:  # the entry is damaged, encrypted, or packed by an unknown method
            raise CorruptPictureError(f"cannot be unpacked: {error}") from error


class Shards(Files):
    """Image members of tar files (webdataset), ordered by the names of the files and, in each file, of the members.

    Args:
        path: the one file, or the folder that the files are in.
        files: the tars.
        left_out: how many files of the folder are left out, by reason.

    Raises:
        UserError: a file is no tar, or is damaged.
    """

    def __init__(self, path: Path, files: Sequence[Path], left_out: Counter[str] | None = None) -> None:
        names = {file: file.name if file == path else file.relative_to(path).as_posix() for file in files}
        ordered = sorted(files, key=lambda file: order_of(names[file]))
        super().__init__(str(path), [(names[file], arrange(_members(file))) for file in ordered])
        self.left_out += left_out or Counter()

    def _bytes(self, place: _Member) -> bytes:
        file, offset, size, holes = place
        if size > MAX_BYTES:
            raise CorruptPictureError(f"is {size:,} bytes; at most {MAX_BYTES:,} are read")
        try:
            if holes is not None:
                with tarfile.open(file, "r:") as tar:
                    stored = tar.extractfile(holes)
                    data = b"" if stored is None else stored.read()
            else:
                with file.open("rb") as stream:
                    stream.seek(offset)
                    data = stream.read(size)
        except (OSError, tarfile.TarError) as error:
            raise CorruptPictureError(f"cannot be read: {error}") from error
        if len(data) != size:
            raise CorruptPictureError("is cut short")
        return data


def walk(root: Path) -> list[tuple[str, Path]]:
    """Every file in a folder, at any depth, with its relative name. Folders behind links are entered too.

    A link to a folder that the link lies in is not entered.

    Raises:
        UserError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}")

    found = []
    above: dict[str, frozenset[tuple[int, int]]] = {str(root): frozenset()}
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(place)
        seen = above.pop(place) | {(status.st_dev, status.st_ino)}
        for folder in list(folders):
            try:
                inner = os.stat(os.path.join(place, folder))
            except OSError as error:
                refuse(error)
            if (inner.st_dev, inner.st_ino) in seen:  # a link to a folder that it lies in
                folders.remove(folder)
            else:
                above[os.path.join(place, folder)] = seen
        found += [(Path(place, name).relative_to(root).as_posix(), Path(place, name)) for name in files]
    return found


def _name_of(entry: zipfile.ZipInfo) -> str:
    """The name of an entry, as UTF-8 if its bytes are valid UTF-8, even where the zip does not declare it."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return entry.filename


def _members(file: Path) -> list[tuple[str, _Member | None]]:
    """Names and places of a tar's files; the place is None where a link leads to nothing in this tar.

    Raises:
        UserError: the file is no tar, or is cut short or damaged. Python's reader stops silently at a torn header.
    """
    files: list[tuple[str, _Member]] = []
    links: list[tuple[str, str]] = []
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isfile():
                    holes = member if member.issparse() else None
                    files.append((member.name, (file, member.offset_data, member.size, holes)))
                elif member.islnk() or member.issym():
                    beside = "" if member.islnk() else posixpath.dirname(member.name)
                    links.append((member.name, posixpath.join(beside, member.linkname)))
            end = tar.offset
        with file.open("rb") as stream:
            stream.seek(end)
            whole = stream.read(_BLOCK) == bytes(_BLOCK)
            more = any(any(chunk) for chunk in iter(lambda: stream.read(1 << 20), b""))
    except Exception as error:
        raise UserError(f"{file} is no readable tar: {error}") from error
    if not whole:
        raise UserError(f"{file} is no readable tar: it is cut short or damaged at byte {end:,}")
    if more:
        raise UserError(
            f"{file} goes on after its end mark at byte {end:,}: it is damaged there, or it is two tars joined; "
            "put both into a folder and name that"
        )
    return with_links(files, links)
