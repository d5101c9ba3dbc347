"""Pictures moved about and mirrored: several for one caption, none of them less real than the first."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

HANDED = re.compile(  # mirrored, these are another thing or not legible
    r"left|right|clock|thirty|moon|quarter|trend|calendar|hundred|medal|musical|watch|newspaper|dvd|octagonal|banknote"
)
WHITE = 255


def varied(images: Tensor, names: Sequence[str], shift: int, mirror: bool, seed: int) -> Tensor:
    """Each picture moved by whole pixels on white, up to `shift` each way, and mirrored or not.

    Args:
        images: uint8 Tensor of shape (N, 3, H, W) on white.
        names: N names; those in which left and right matter are not mirrored.
        shift: pixels.
        mirror: whether to mirror half of them.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    side = 2 * shift + 1
    offsets = torch.randint(0, side, (len(images), 2), generator=generator).tolist()
    flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    height, width = images.shape[-2:]
    wide = pad(images, (shift,) * 4, value=WHITE)
    out = torch.empty_like(images)
    for i, (top, left) in enumerate(offsets):
        picture = wide[i, :, top : top + height, left : left + width]
        out[i] = picture.flip(-1) if mirror and flips[i] and not HANDED.search(names[i]) else picture
    return out
