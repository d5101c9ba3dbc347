"""Shifted and mirrored copies of images, so that a caption has several images."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

HANDED = re.compile(  # mirrored, these show another thing or cannot be read
    r"left|right|clock|thirty|moon|quarter|trend|calendar|hundred|medal|musical|watch|newspaper|dvd|octagonal|banknote"
)
WHITE = 255


def varied(images: Tensor, names: Sequence[str], shift: int, mirror: bool, seed: int) -> Tensor:
    """Each image shifted by whole pixels on white and, perhaps, mirrored.

    Args:
        images: uint8 Tensor of shape (N, 3, H, W), on a white ground.
        names: N names. Images in which left and right matter, by their names, are not mirrored.
        shift: largest shift in each direction, in pixels.
        mirror: whether half of the images are mirrored.
        seed: seed of the random shifts and mirrorings.

    Returns:
        Tensor of the shape and type of `images`.
    """
    generator = torch.Generator().manual_seed(seed)
    side = 2 * shift + 1
    offsets = torch.randint(0, side, (len(images), 2), generator=generator).tolist()
    flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    height, width = images.shape[-2:]
    wide = pad(images, (shift,) * 4, value=WHITE)
    out = torch.empty_like(images)
    for i, (top, left) in enumerate(offsets):
        image = wide[i, :, top : top + height, left : left + width]
        out[i] = image.flip(-1) if mirror and flips[i] and not HANDED.search(names[i]) else image
    return out
