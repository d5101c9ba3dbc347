"""The images of two sources as pairs: by name, or in order where a source has no names."""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.data.listing import normal, without_ending
from diffdistill.data.source import Source
from diffdistill.errors import UserError

_NAMED = 3  # missing partners that a message names


class Pairs(Source):
    """Each image of `reference` with the image of `images` of the same name: uint8 (6, H, W), in the reference's order.

    A name is the path inside the source without its ending; Unicode normal forms do not matter. The images of an .npz,
    which has no names, pair in order.

    Attributes:
        paired_by: "name" or "order".

    Raises:
        UserError: an image without a partner, or two images of one name; from `read`, a pair of two sizes.
    """

    def __init__(self, reference: Source, images: Source) -> None:
        self.name = f"{images.name} against {reference.name}"
        self.reference, self.images = reference, images
        self.left_out = reference.left_out + images.left_out
        self.paired_by = "name"
        if reference.path(0) is None or images.path(0) is None:
            self.paired_by = "order"
            if len(reference) != len(images):
                raise UserError(
                    f"{reference.name} holds {len(reference)} images, {images.name} {len(images)}; "
                    "images without names, such as those of an .npz, pair in order, so the numbers must be equal"
                )
            self._places = [(i, i) for i in range(len(reference))]
            return
        ours, theirs = _by_name(reference), _by_name(images)
        for names, others, source in ((ours, theirs, images), (theirs, ours, reference)):
            if lacking := [name for name in names if name not in others]:
                more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
                raise UserError(f"{source.name} has no partner for {', '.join(lacking[:_NAMED])}{more}")
        self._places = [(index, theirs[name]) for name, index in ours.items()]

    def __len__(self) -> int:
        return len(self._places)

    def label(self, index: int) -> str:
        return self.reference.label(self._places[index][0])

    def read_bytes(self, index: int) -> bytes:
        ours, theirs = self._places[index]
        return self.reference.read_bytes(ours) + self.images.read_bytes(theirs)

    def read(self, index: int) -> Tensor:
        ours, theirs = self._places[index]
        x, y = self.reference.read(ours), self.images.read(theirs)
        if x.shape != y.shape:
            (h, w), (other_h, other_w) = x.shape[1:], y.shape[1:]
            sizes = f"{w}x{h} in {self.reference.name}, {other_w}x{other_h} in {self.images.name}"
            raise UserError(f"{self.label(index)} is {sizes}; a pair needs one size")
        return torch.cat([x, y])


def _by_name(source: Source) -> dict[str, int]:
    found: dict[str, int] = {}
    for index in range(len(source)):
        name = without_ending(normal(source.path(index) or source.label(index)))
        if name in found:
            first, second = source.label(found[name]), source.label(index)
            raise UserError(f"{source.name} holds two images named {name}: {first} and {second}")
        found[name] = index
    return found
