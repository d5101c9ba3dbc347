"""Where pictures come from: a folder, a zip, an npz, webdataset shards; one index a picture, read when asked for.

Notable:
- a source never holds all its pictures (an npz that is compressed aside); memory does not grow with their number;
- sizes are read from headers and checked before pixels are decoded;
- order is by name, so index i is the same picture on every machine and process;
- `digest` is a hash of the contents, which references are cached by.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
MAX_PIXELS = 64_000_000  # of one picture
MAX_NPZ_BYTES = 8 << 30


class CorruptPictureError(UserError):
    """One picture cannot be read; the message names it."""


class Source(ABC):
    """Pictures by index.

    Attributes:
        name: what was asked for, for messages and reports.
    """

    name: str
    together: bool = False  # whether a batch is made at once (a generator's), not picture by picture in threads

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> str:
        """The picture's own name."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The stored form of a picture."""

    def read(self, index: int) -> Tensor:
        """One picture as a uint8 Tensor of shape (3, H, W).

        Raises:
            CorruptPictureError: it cannot be decoded, or is larger than 64 million pixels.
        """
        return decode(self.read_bytes(index), f"{self.name}: {self.label(index)}")

    def captions(self) -> list[str] | None:
        """Each picture's caption, where the source knows them."""
        return None

    def made_from(self) -> dict[str, Any]:
        """What a report says of where the pictures come from, beside their name."""
        return {}

    def read_many(self, indices: Sequence[int]) -> list[Tensor]:
        """Several pictures, in the order asked for."""
        return [self.read(index) for index in indices]

    def digest(self) -> str:
        """16 hex digits of a hash over the names and contents of all pictures."""
        found = hashlib.sha256()
        for i in range(len(self)):
            try:
                content = hashlib.sha256(self.read_bytes(i)).digest()
            except CorruptPictureError:  # for whoever measures it to stop at or to leave out
                content = b"unreadable"
            found.update(self.label(i).encode() + b"\0" + content)
        return found.hexdigest()[:16]


def open_source(path: str | Path) -> Source:
    """The source at a path: a folder of pictures, a .zip, a .npz, a .tar, a folder of .tar shards, or an emoji set.

    Raises:
        UserError: nothing there, another kind of file, or no picture in it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there are no pictures at {path}")
    source: Source
    if path.is_dir() and (path / "concepts.tsv").is_file():
        source = Emoji(path)
    elif path.is_dir():
        shards = sorted(path.glob("*.tar"))
        source = Shards(path, shards) if shards else Folder(path)
    elif path.suffix == ".zip":
        source = Zip(path)
    elif path.suffix == ".npz":
        source = Npz(path)
    elif path.suffix == ".tar":
        source = Shards(path, [path])
    else:
        raise UserError(f"{path} is no folder, .zip, .npz or .tar of pictures")
    if len(source) == 0:
        raise UserError(f"{path} holds no picture; those are files ending in {', '.join(PICTURES)}")
    return source


def decode(data: bytes, what: str) -> Tensor:
    """An encoded picture to a uint8 Tensor of shape (3, H, W); grey and palettes become RGB, alpha goes onto white.

    Raises:
        CorruptPictureError: naming `what`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture: Any = opened
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise CorruptPictureError(f"{what} is {width}x{height}; at most {MAX_PIXELS:,} pixels are read")
            if picture.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
                raise CorruptPictureError(f"{what} is of mode {picture.mode}; only 8 bits a channel are read")
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                white.alpha_composite(picture)
                picture = white
            pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptPictureError(f"{what} cannot be read as a picture: {str(error).partition(' <')[0]}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES) and not Path(name).name.startswith(".")


class Folder(Source):
    """Picture files below a folder, at any depth, in the order of their relative names."""

    def __init__(self, path: Path) -> None:
        self.name, self._root = str(path), path
        found = (p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        self._names = sorted(name for name in found if _is_picture(name) and Path(name).name != "grid.png")

    def __len__(self) -> int:
        return len(self._names)

    def label(self, index: int) -> str:
        return self._names[index]

    def read_bytes(self, index: int) -> bytes:
        try:
            return (self._root / self._names[index]).read_bytes()
        except OSError as error:
            raise CorruptPictureError(f"{self.name}: {self.label(index)} cannot be read: {error.strerror}") from error


class Zip(Source):
    """Picture files inside a zip, in the order of their names."""

    def __init__(self, path: Path) -> None:
        self.name, self._lock = str(path), threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no readable zip: {error}") from error
        self._entries = sorted((e for e in self._zip.infolist() if _is_picture(e.filename)), key=lambda e: e.filename)

    def __len__(self) -> int:
        return len(self._entries)

    def label(self, index: int) -> str:
        return self._entries[index].filename

    def read_bytes(self, index: int) -> bytes:
        entry = self._entries[index]
        if entry.file_size > 4 * MAX_PIXELS:
            raise CorruptPictureError(f"{self.name}: {entry.filename} would unpack to {entry.file_size:,} bytes")
        try:
            with self._lock:
                return self._zip.read(entry)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, ValueError) as error:
            raise CorruptPictureError(f"{self.name}: {entry.filename} cannot be unpacked: {error}") from error


class Shards(Source):
    """Picture members of tar files (webdataset), in the order of the files and, in each, of the members."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.name = str(path)
        self._members: list[tuple[Path, str, int, int]] = []
        for file in files:
            try:
                with tarfile.open(file, "r:") as tar:
                    self._members += [
                        (file, m.name, m.offset_data, m.size) for m in tar if m.isfile() and _is_picture(m.name)
                    ]
            except (OSError, tarfile.TarError) as error:
                raise UserError(f"{file} is no readable tar: {error}") from error

    def __len__(self) -> int:
        return len(self._members)

    def label(self, index: int) -> str:
        file, member, _, _ = self._members[index]
        return f"{file.name}/{member}"

    def read_bytes(self, index: int) -> bytes:
        file, _, offset, size = self._members[index]
        if size > 4 * MAX_PIXELS:
            raise CorruptPictureError(f"{self.name}: {self.label(index)} is {size:,} bytes")
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) != size:
            raise CorruptPictureError(f"{self.name}: {self.label(index)} is cut short")
        return data


class Emoji(Source):
    """The training pictures of a folder laid out as assets/emoji, in its own order."""

    def __init__(self, path: Path) -> None:
        from diffdistill.data.emoji import load_emoji

        self.name, self._set = str(path), load_emoji(path)

    def __len__(self) -> int:
        return len(self._set)

    def label(self, index: int) -> str:
        return self._set.captions[index]

    def captions(self) -> list[str]:
        return self._set.captions

    def read_bytes(self, index: int) -> bytes:
        return _shaped(self._set.images[index].numpy())

    def read(self, index: int) -> Tensor:
        return self._set.images[index]


class Npz(Source):
    """`arr_0` (or the only array) of an npz: uint8, (N, H, W, 3) or (N, 3, H, W). Loaded whole."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._pixels = _npz_pixels(path)

    def __len__(self) -> int:
        return len(self._pixels)

    def label(self, index: int) -> str:
        return f"[{index}]"

    def read_bytes(self, index: int) -> bytes:
        return _shaped(self._pixels[index])

    def read(self, index: int) -> Tensor:
        pixels = torch.from_numpy(self._pixels[index])
        return pixels.permute(2, 0, 1) if pixels.shape[-1] == 3 else pixels


def _shaped(pixels: Any) -> bytes:
    """Bytes that tell arrays of other shapes apart."""
    return f"{pixels.shape}".encode() + pixels.tobytes()


def _npz_pixels(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise UserError(f"{path} would unpack to {size:,} bytes; at most {MAX_NPZ_BYTES:,} are read: use a zip")
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            name = "arr_0" if "arr_0" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise UserError(f"{path} holds {', '.join(names) or 'no array'}; expected arr_0")
            pixels = arrays[name]
    except (OSError, EOFError, zlib.error, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable npz: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or 3 not in (pixels.shape[-1], pixels.shape[1]):
        found = f"{pixels.dtype} {pixels.shape}"
        raise UserError(f"{path}: {name} is {found}; expected uint8 of (N, H, W, 3) or (N, 3, H, W)")
    return pixels
