"""Shifted and mirrored copies of images, so that a caption has several images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
    side = 2 * shift + 1
    height, width = images.shape[-2:]
    wide = pad(images, (shift,) * 4, value=WHITE)
    out = torch.empty_like(images)
    for i, (top, left, flipped) in enumerate(_drawn(names, side, mirror, seed)):
        image = wide[i, :, top : top + height, left : left + width]
        out[i] = image.flip(-1) if flipped else image
    return out


def changes(names: Sequence[str], shift: int, mirror: bool, seed: int) -> Tensor:
    """How `varied` changes each image, for a network that is conditioned on it.

    Args:
        names, shift, mirror, seed: as in `varied`.

    Returns:
        Tensor of shape (N, 3): the shifts down and to the right as fractions of the largest one, and 1 for an image
        that is mirrored. An image that stays as it is has (0, 0, 0).
    """
    found = [
        ((shift - top) / max(1, shift), (shift - left) / max(1, shift), float(flipped))
        for top, left, flipped in _drawn(names, 2 * shift + 1, mirror, seed)
    ]
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 3)


def _drawn(names: Sequence[str], side: int, mirror: bool, seed: int) -> Iterator[tuple[int, int, bool]]:
    """For each image, where its window begins in the padded one (top, left), and whether it is mirrored then."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, side, (len(names), 2), generator=generator).tolist()
    flips = (torch.rand(len(names), generator=generator) < 0.5).tolist()
    for name, (top, left), flip in zip(names, offsets, flips, strict=True):
        yield top, left, mirror and flip and not HANDED.search(name)
