"""Tensors to PNG files, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def save_picture(path: Path, image: Tensor) -> None:
    """Write one picture (3, H, W) in [0, 1], rounded to 8 bits."""
    from PIL import Image

    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.part")
    Image.fromarray(pixels.numpy()).save(hidden, format="PNG")
    hidden.replace(path)


def save_grid(path: Path, images: Tensor, columns: int = 8) -> None:
    """Write pictures (N, 3, H, W) in [0, 1] as one PNG, row by row; empty cells are white."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(rows * columns, c, h, w)
    sheet[:n] = images.detach().float().cpu()
    save_picture(path, sheet.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w))
