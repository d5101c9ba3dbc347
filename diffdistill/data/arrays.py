"""Images that are arrays: an npz, and the embedded emoji set."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.data.emoji import load_emoji
from diffdistill.data.source import Source
from diffdistill.errors import UserError

MAX_NPZ_BYTES = 8 << 30


class Emoji(Source):
    """The training images of a folder laid out as assets/emoji, in its own order."""

    captions_from = "the emoji set"

    def __init__(self, path: Path) -> None:
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
    """The images in `arr_0`, or in the only array, of an npz: uint8, (N, H, W, 3) or (N, 3, H, W).

    The array is loaded whole.
    """

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
    """The bytes of an array, after its shape, so that arrays of different shapes differ."""
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
    except UserError:
        raise
    except Exception as error:  # numpy raises many kinds of error for a damaged archive
        raise UserError(f"{path} is no readable npz: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or 3 not in (pixels.shape[-1], pixels.shape[1]):
        found = f"{pixels.dtype} {pixels.shape}"
        raise UserError(f"{path}: {name} is {found}; expected uint8 of (N, H, W, 3) or (N, 3, H, W)")
    return pixels
