"""Tensors to PNG files. A file is written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError


def check_finite(images: Tensor, first: int) -> None:
    """Raise UserError where an image holds NaN or infinity. The error gives the name that `generate` would give it.

    Args:
        images: (N, 3, H, W).
        first: number of the first image.
    """
    finite = images.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero().flatten().tolist()
        more = f" and {len(bad) - 1} more of its batch" if len(bad) > 1 else ""
        raise UserError(
            f"image {first + bad[0]:05d}.png{more}: its values are not finite, so it is not written; check the model, "
            "the settings of its scheduler, and the guidance"
        )


def save_picture(path: Path, image: Tensor) -> None:
    """Write one image (3, H, W) in [0, 1], rounded to 8 bits."""
    _write(path, _as_pil(image))


def save_bytes(path: Path, image: Tensor) -> None:
    """Write one image (3, H, W), uint8, as it is; if the name ends in .jpg, as a JPEG of quality 95."""
    from PIL import Image

    _write(path, Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()))


def save_grid(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write images (N, 3, H, W) in [0, 1] as one PNG, row by row; empty cells are white."""
    save_picture(path, _sheet(images, columns))


def save_labelled_grids(path: Path, grids: Mapping[str, Tensor], columns: int = 12) -> None:
    """Write several grids of images (N, 3, H, W) in [0, 1] as one PNG, one below the other, each under its label."""
    from PIL import Image, ImageDraw, ImageFont

    height = 22
    parts = [(label, _as_pil(_sheet(images, columns))) for label, images in grids.items()]
    page = Image.new("RGB", (max(p.width for _, p in parts), sum(p.height + height for _, p in parts)), "white")
    pen, font, y = ImageDraw.Draw(page), ImageFont.load_default(14), 0
    for label, part in parts:
        pen.text((4, y + 3), label, fill="black", font=font)
        page.paste(part, (0, y + height))
        y += height + part.height
    _write(path, page)


def _sheet(images: Tensor, columns: int) -> Tensor:
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(rows * columns, c, h, w)
    sheet[:n] = images.detach().float().cpu()
    return sheet.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


def _as_pil(image: Tensor) -> Any:
    from PIL import Image

    shown = image.detach().float().cpu().nan_to_num(0.0)  # NaN, in the preview of a run that diverges, becomes black
    pixels = (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def _write(path: Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.part")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        image.save(hidden, format="JPEG", quality=95, subsampling=0)
    else:
        image.save(hidden, format="PNG")
    hidden.replace(path)
