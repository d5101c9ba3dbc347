"""Whether a reconstruction shows the grid of its blocks."""

from __future__ import annotations

import math

from torch import Tensor

SIDES = (8, 16)  # pixels; the larger of both ratios counts, for each codec
USUAL = 16


def block_grid(image: Tensor, made: Tensor, side: int = USUAL) -> float:
    """How much steeper the error is across the borders of blocks than elsewhere.

    The error is the reconstruction minus the original. Its gradient is the absolute difference of two neighbours,
    horizontally or vertically. The ratio is the mean gradient across lines at multiples of `side` over the mean
    gradient elsewhere. It is about 1 where there is no grid.

    Args:
        image: uint8 tensor of shape (3, H, W).
        made: the reconstruction, of the same shape.
        side: of a block, in pixels.

    Returns:
        The ratio; 1 where there is no error, and infinite where it changes only from block to block.

    Raises:
        ValueError: the shapes differ, or no line lies inside the image.
    """
    if image.shape != made.shape or image.dim() != 3:
        raise ValueError(f"images should have one shape (3, H, W), got {tuple(image.shape)} and {tuple(made.shape)}")
    if side < 2 or max(image.shape[1:]) <= side:
        raise ValueError(f"no line at a multiple of {side} lies inside an image of {image.shape[2]}x{image.shape[1]}")
    error = made.double() - image.double()
    on, off, n_on, n_off = 0.0, 0.0, 0, 0
    for dim in (1, 2):
        steps = error.diff(dim=dim).abs().movedim(dim, -1)  # step i lies between i and i + 1
        across = steps[..., side - 1 :: side]
        on, n_on = on + float(across.sum()), n_on + across.numel()
        off, n_off = off + float(steps.sum() - across.sum()), n_off + steps.numel() - across.numel()
    if on == 0 == off:
        return 1.0
    return math.inf if off <= 1e-9 * on else (on / n_on) / (off / n_off)
