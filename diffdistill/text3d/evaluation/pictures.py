"""Pictures of objects: all reference views in one PNG file, and four of them above the true ones for a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.files import write_atomic
from diffdistill.text3d.things.viewpoints import REFERENCE_AZIMUTH_DEG, REFERENCE_ELEVATION_DEG

COLUMNS, ROWS = len(REFERENCE_AZIMUTH_DEG), len(REFERENCE_ELEVATION_DEG)
SHOWN = tuple(COLUMNS + k for k in range(0, COLUMNS, 2))  # azimuths 0, 90, 180 and 270, at 20 degrees of elevation


def as_bytes(views: Tensor) -> Tensor:
    """Views in [0, 1] as uint8, rounded."""
    return (views * 255).round().to(torch.uint8)


def write_sheet(path: Path, views: Tensor) -> None:
    """Write reference views (24, 3, S, S) uint8 as a PNG: a row of 8 azimuths for each elevation."""
    write_atomic(path, _encoded(_tiled(views, COLUMNS), "PNG"))


def read_sheet(path: Path, size: int) -> Tensor:
    """What `write_sheet` wrote, (24, 3, S, S) uint8.

    Raises:
        UserError: the file is missing, damaged, or of another size.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.size != (COLUMNS * size, ROWS * size):
                raise ValueError(f"it has {picture.size} pixels, and {COLUMNS * size, ROWS * size} were expected")
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} holds no reference views that can be read: {error}; delete it") from error
    return pixels.view(ROWS, size, COLUMNS, size, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, size, size)


def beside(made: Tensor, true: Tensor) -> str:
    """Four views of an object above the true ones, as a `data:` address of a lossless WebP picture.

    Args:
        made: reference views (24, 3, S, S) uint8.
        true: true renders from the same cameras.
    """
    chosen = torch.cat([made[list(SHOWN)], true[list(SHOWN)]])
    data = base64.b64encode(_encoded(_tiled(chosen, len(SHOWN)), "WEBP")).decode("ascii")
    return f"data:image/webp;base64,{data}"


def _tiled(views: Tensor, columns: int) -> Tensor:
    """Views (N, 3, S, S) side by side, (H, W, 3)."""
    rows = views.unflatten(0, (-1, columns))
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def _encoded(pixels: Tensor, kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    options = {"lossless": True, "quality": 100, "method": 4} if kind == "WEBP" else {"optimize": True}
    Image.fromarray(pixels.contiguous().numpy()).save(file, kind, **options)
    return file.getvalue()
