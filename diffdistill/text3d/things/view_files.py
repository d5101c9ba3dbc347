"""The views of one thing as a file: an .npz without pickle that holds two lossless WebP sheets.

    record       JSON: format, name, kind, size, and where the views come from
    azimuth      (R,) float32, of the first view of each ring, in degrees
    elevation    (R,) float32, in degrees
    rings        the bytes of a sheet of 4 R views
    references   the bytes of a sheet of 24 views

Notable:
- a view has three channels (main shade, second shade, alpha) of a procedural thing, or four (red, green and blue times
  alpha, and alpha) of a 3D model. A sheet has the views side by side, 16 in a row, from left to right;
- a file is read within limits: its size, the size of its sheets and its numbers are checked before pixels are decoded.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things.viewpoints import ELEVATION_DEG, REFERENCES, RING

FORMAT = 1
CHANNELS = {"shades": 3, "colours": 4}
MAX_SIZE, MAX_SHEET, MAX_BYTES = 256, 16383, 256 << 20  # pixels, pixels (a limit of WebP), bytes
_ROW = 16  # views
_MEMBERS = ("record", "azimuth", "elevation", "rings", "references")


@dataclass(frozen=True)
class ThingViews:
    """Views of one thing.

    Args:
        name: the thing's name.
        kind: "shades" of a procedural thing, or "colours" of a 3D model.
        rings: (R, 4, C, S, S) uint8, where C is 3 for shades and 4 for colours.
        references: (24, C, S, S) uint8.
        azimuth: (R,) float32, of the first view of each ring, in degrees.
        elevation: (R,) float32 in [-15, 50], in degrees.
        companion: the colour of the second part, of shades.
        white: the luma that becomes the full colour in a tint, of colours.
        source: where the views come from, in words and numbers that JSON has.

    Raises:
        UserError: shapes, types or ranges are others.
    """

    name: str
    kind: str
    rings: Tensor
    references: Tensor
    azimuth: Tensor
    elevation: Tensor
    companion: tuple[float, float, float] = (0.0, 0.0, 0.0)
    white: float = 1.0
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in CHANNELS:
            raise UserError(f"{self.name}: kind is {self.kind!r}; it must be shades or colours")
        count, size = len(self.rings), self.size
        if not 8 <= size <= MAX_SIZE or not 1 <= count <= most_rings(size):
            raise UserError(
                f"{self.name} has {count} rings of {size} pixels; a view has 8 to {MAX_SIZE} pixels, and of {size} "
                f"pixels at most {most_rings(size)} rings are kept"
            )
        shape = (CHANNELS[self.kind], size, size)
        for name, views, wanted in (
            ("rings", self.rings, (count, RING, *shape)),
            ("references", self.references, (REFERENCES, *shape)),
        ):
            if tuple(views.shape) != wanted or views.dtype != torch.uint8:
                raise UserError(
                    f"{self.name}: {name} are {views.dtype} of {tuple(views.shape)}; expected uint8 of {wanted}"
                )
        low, high = ELEVATION_DEG
        for name, angles, least, most in (
            ("azimuth", self.azimuth, 0.0, 360.0),
            ("elevation", self.elevation, low, high),
        ):
            if (
                tuple(angles.shape) != (count,)
                or angles.dtype != torch.float32
                or not bool(((angles >= least) & (angles <= most)).all())
            ):
                raise UserError(f"{self.name}: {name} must be {count} numbers in [{least:g}, {most:g}]")
        if len(self.companion) != 3 or not all(0 <= c <= 1 for c in self.companion) or not 0 < self.white <= 1:
            raise UserError(f"{self.name}: companion is {self.companion} and white {self.white}; both are in [0, 1]")

    @property
    def size(self) -> int:
        """S, the side of a view in pixels."""
        return self.rings.shape[-1]


def most_rings(size: int) -> int:
    """How many rings of views of this size a sheet has room for.

    >>> most_rings(64)
    1020
    """
    return MAX_SHEET // size * (_ROW // RING)


def views_as_bytes(views: ThingViews) -> bytes:
    """A file of the views."""
    record = {
        "format": FORMAT,
        "name": views.name,
        "kind": views.kind,
        "size": views.size,
        "companion": list(views.companion),
        "white": views.white,
        "source": views.source,
    }
    file = io.BytesIO()
    np.savez(
        file,
        record=np.frombuffer(json.dumps(record, allow_nan=False).encode(), np.uint8),
        azimuth=views.azimuth.numpy(),
        elevation=views.elevation.numpy(),
        rings=np.frombuffer(_sheet(views.rings.flatten(0, 1)), np.uint8),
        references=np.frombuffer(_sheet(views.references), np.uint8),
    )
    return file.getvalue()


def read_views(path: Path) -> ThingViews:
    """The views in a file.

    Raises:
        UserError: the file cannot be read, is damaged, or holds something else than views.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > MAX_BYTES:
            raise UserError(f"{path} would unpack to {total:,} bytes; at most {MAX_BYTES:,} are read")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in _MEMBERS}
        record = json.loads(found["record"].tobytes())
        if record["format"] != FORMAT:
            raise UserError(f"{path} has format {record['format']}; this version reads {FORMAT}")
        size, channels, rings = int(record["size"]), CHANNELS[record["kind"]], len(found["azimuth"])
        if not 8 <= size <= MAX_SIZE or not 1 <= rings <= most_rings(size):
            raise UserError(f"{path} states {rings} rings of {size} pixels")
        return ThingViews(
            name=str(record["name"]),
            kind=record["kind"],
            rings=_cells(found["rings"].tobytes(), RING * rings, channels, size).unflatten(0, (rings, RING)),
            references=_cells(found["references"].tobytes(), REFERENCES, channels, size),
            azimuth=torch.from_numpy(found["azimuth"]),
            elevation=torch.from_numpy(found["elevation"]),
            companion=tuple(float(c) for c in record["companion"]),  # type: ignore[arg-type]
            white=float(record["white"]),
            source=dict(record["source"]),
        )
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile, json and Pillow raise many kinds of error for a damaged file
        raise UserError(f"{path} is no readable file of views: {error or type(error).__name__}") from error


def _sheet(views: Tensor) -> bytes:
    """Views (N, C, S, S) uint8 as a lossless WebP picture."""
    from PIL import Image

    n, channels, size, _ = views.shape
    rows = -(-n // _ROW)
    cells = views.new_zeros(rows * _ROW, channels, size, size)
    cells[:n] = views
    pixels = cells.view(rows, _ROW, channels, size, size).permute(0, 3, 1, 4, 2).reshape(rows * size, -1, channels)
    file = io.BytesIO()
    # `exact` keeps what lies below alpha 0, which is 0 by itself, whatever the encoder would make of it
    Image.fromarray(pixels.numpy()).save(file, "WEBP", lossless=True, exact=True, quality=100, method=4)
    return file.getvalue()


def _cells(data: bytes, n: int, channels: int, size: int) -> Tensor:
    """The first n views (n, C, S, S) uint8 of a sheet; the sheet must be of the size that this makes."""
    from PIL import Image

    rows = -(-n // _ROW)
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
        if picture.size != (_ROW * size, rows * size):
            raise ValueError(f"a sheet is of {picture.size} pixels, where {_ROW * size, rows * size} were expected")
        mode = "RGBA" if channels == 4 else "RGB"
        if picture.mode != mode:
            raise ValueError(f"a sheet is {picture.mode}, where {mode} was expected")
        pixels = np.asarray(picture)
    cells = torch.from_numpy(pixels.copy()).view(rows, size, _ROW, size, channels).permute(0, 2, 4, 1, 3)
    return cells.reshape(-1, channels, size, size)[:n].clone()
