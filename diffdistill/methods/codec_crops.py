"""Random crops of photographs, for the methods that train the codec."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.codec.bitstream import HIGHEST_QUALITY
from diffdistill.codec.network import MULTIPLE
from diffdistill.data.photographs import PhotographData, load_photographs, random_crop
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.launched import is_first

HELD = 12  # each so many photographs, one is kept for validation
VALIDATION_SIDE = 512  # in pixels


class Crops:
    """Photographs in memory, and crops of them.

    Args:
        data: where the photographs are.
        side: of a crop, in pixels.

    Attributes:
        records: numbers of the photographs that are trained on, large ones more often than small ones.
        held: numbers of those that are kept for validation: each twelfth, or none of 12 or fewer.
        digest: a hash of the photographs.

    Raises:
        UserError: there are no photographs of that size.
    """

    def __init__(self, data: PhotographData, side: int) -> None:
        found = load_photographs(data.source, side)
        if found.left_out and is_first():
            small = f"{found.left_out} images of {data.source} are left out: a side is below {side} pixels"
            print(f"note: {small}", file=sys.stderr, flush=True)
        self.side, self.photographs, self.digest = side, found.images, found.digest
        every = range(len(found.images))
        self.held = [i for i in every if i % HELD == HELD // 2] if len(every) > HELD else []
        trained = [i for i in every if i not in self.held]
        areas = [found.images[i][0].numel() for i in trained]
        cell = min(areas)
        self.records = [
            i for i, area in zip(trained, areas, strict=True) for _ in range(max(1, round((area / cell) ** 0.5)))
        ]

    def images(self, records: Sequence[int], random: SampleRandom) -> Tensor:
        """A crop of each record: (N, 3, side, side) in [0, 1], channels last."""
        draws = random.uniform("crop", (8,)).tolist()
        pairs = zip(records, draws, strict=True)
        crops = [random_crop(self.photographs[self.records[i]], self.side, draw) for i, draw in pairs]
        return (torch.stack(crops).float() / 255).contiguous(memory_format=torch.channels_last)

    def for_statistics(self, most: int = 256) -> Tensor:
        """Crops of a seed of their own: about 8 for each photograph, and at most so many."""
        photographs = len(set(self.records))
        indices = range(min(most, 8 * photographs))
        stride = max(1, len(self.records) // len(indices))  # of many photographs, some from everywhere
        return self.images([i * stride % len(self.records) for i in indices], SampleRandom(0, indices))

    def shown(self, multiple: int) -> list[Tensor]:
        """The middles of the photographs that are kept, or else of the first one: (1, 3, H, W) in [0, 1]."""
        found = []
        for i in self.held or range(1):
            image = self.photographs[i]
            h, w = (min(VALIDATION_SIDE, n // multiple * multiple) for n in image.shape[1:])
            top, left = (image.shape[1] - h) // 2, (image.shape[2] - w) // 2
            found.append(image[None, :, top : top + h, left : left + w].float() / 255)
        return found


def check_crop(side: int) -> None:
    """Refuse a crop that the code does not divide.

    Raises:
        UserError: the side in pixels is no multiple of 64, or below 128.
    """
    if side % MULTIPLE or side < 2 * MULTIPLE:
        raise UserError(f"crop is {side}; it must be a multiple of {MULTIPLE}, from {2 * MULTIPLE}")


def random_qualities(random: SampleRandom, exponent: float) -> Tensor:
    """Qualities 100 u^exponent, rounded: (B,) float32."""
    return (HIGHEST_QUALITY * random.uniform("quality").float() ** exponent).round()
