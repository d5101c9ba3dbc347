"""Reads a furniture library of Sweet Home 3D (.sh3f): a zip file of OBJ models, with a catalogue of names and sizes.

Notable:
- nothing is unpacked. A model and its textures are handed over as bytes, and only files of the model's own folder;
- all names and sizes that the archive states are checked before anything is read, and no more is read than they say:
  an archive that would leave its folder, or grow without bounds, is refused, and the message names the member;
- nothing that an archive holds is run.
"""

from __future__ import annotations

import math
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from diffdistill.errors import UserError

CATALOGUE = "PluginFurnitureCatalog.properties"
MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 64 << 20
MAX_BYTES = 1 << 30  # of all members together
_NEEDED = (".mtl", ".png", ".jpg", ".jpeg", ".bmp", ".gif")  # beside the model itself
_LINE = re.compile(r"^([A-Za-z]+)#(\d{1,6})\s*=\s*(.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A model as the catalogue describes it.

    Attributes:
        name: in English.
        model: the OBJ file's name in the archive.
        size: width (x), height (y) and depth (z) in centimetres, in the axes of the OBJ file.
        rotation: 9 numbers of a matrix, row by row, by which the model is turned before its size is measured.
        creator: who made it.
    """

    name: str
    model: str
    size: tuple[float, float, float]
    rotation: tuple[float, ...]
    creator: str


class FurnitureArchive:
    """A checked archive.

    Args:
        path: the .sh3f file.

    Attributes:
        entries: of the catalogue, by the name of the model's folder.

    Raises:
        UserError: the file is no zip file, holds a member with a bad name or a bad size, or has no catalogue that can
            be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise UserError(f"{path} is no readable .sh3f archive: {error}") from error
        try:
            self._members = _checked(path, self._zip.infolist())
            self.entries = _entries(path, self.read(CATALOGUE).decode("latin-1"), self._members)
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> FurnitureArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            UserError: there is no such member, or it is damaged.
        """
        if name not in self._members:
            raise UserError(f"{self.path} holds no {name}")
        member = self._members[name]
        try:
            with self._zip.open(member) as file:
                data = file.read(member.file_size + 1)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.path}: {name} is damaged: {error}") from error
        if len(data) != member.file_size:
            raise UserError(f"{self.path}: {name} holds {len(data)} bytes, and {member.file_size} are stated")
        return data

    def beside(self, entry: Entry) -> dict[str, bytes]:
        """The materials and textures in the folder of a model, by their names without the folder."""
        folder = entry.model.rpartition("/")[0] + "/"
        names = [name for name in self._members if name.startswith(folder) and name.lower().endswith(_NEEDED)]
        return {name.removeprefix(folder): self.read(name) for name in names}


def _checked(path: Path, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{path} holds {len(members):,} members; at most {MAX_MEMBERS:,} are read")
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.orig_filename
        parts = name.rstrip("/").split("/")
        if not name or {"", ".", ".."} & set(parts) or re.search(r"[\\:\0-\x1f]", name):
            raise UserError(f"{path}: the member {name!r} would lie outside of the archive's folder")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{path}: the member {name!r} is no plain file, but a link or a device")
        if member.file_size > MAX_MEMBER_BYTES:
            raise UserError(
                f"{path}: the member {name!r} would unpack to {member.file_size:,} bytes; at most {MAX_MEMBER_BYTES:,}"
            )
        if name in found:
            raise UserError(f"{path} holds {name!r} twice")
        found[name] = member
    if (total := sum(member.file_size for member in members)) > MAX_BYTES:
        raise UserError(f"{path} would unpack to {total:,} bytes; at most {MAX_BYTES:,}")
    return found


def _entries(path: Path, text: str, members: dict[str, zipfile.ZipInfo]) -> dict[str, Entry]:
    rows: dict[int, dict[str, str]] = {}
    for key, number, value in _LINE.findall(text):
        rows.setdefault(int(number), {})[key] = value
    entries: dict[str, Entry] = {}
    for number, row in sorted(rows.items()):
        where = f"{path}: entry {number} of the catalogue"
        if missing := [key for key in ("name", "model", "width", "depth", "height") if key not in row]:
            raise UserError(f"{where} has no {missing[0]}")
        model = row["model"].removeprefix("/")
        if model not in members or not model.lower().endswith(".obj"):
            raise UserError(f"{where} names the model {model!r}, which is no OBJ file of the archive")
        width, depth, height = _numbers(where, " ".join(row[key] for key in ("width", "depth", "height")), 3)
        if min(width, depth, height) <= 0:
            raise UserError(f"{where} is {width} x {depth} x {height} in size, which must be positive")
        rotation = _numbers(where, row.get("modelRotation", "1 0 0 0 1 0 0 0 1"), 9)
        folder = model.split("/")[-2] if "/" in model else ""
        entries[folder] = Entry(row["name"], model, (width, height, depth), rotation, row.get("creator", "unknown"))
    if not entries:
        raise UserError(f"{path}: its catalogue names no model")
    return entries


def _numbers(where: str, text: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split())
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise UserError(f"{where} has {text!r}, where {count} numbers should be")
    return numbers
