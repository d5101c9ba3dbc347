"""A source of images that are in memory already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from diffdistill.data.source import Source
from diffdistill.errors import UserError, shown


class InMemory(Source):
    """Images in one tensor, with or without captions.

    Args:
        images: Tensor of shape (N, 3, H, W), uint8, or floating point in [0, 1].
        captions: N texts, which are also the images' labels; None for images without captions.
        name: the name in messages and reports.

    Raises:
        UserError: the tensor has another shape, or there are not as many captions as images.
    """

    captions_from = "the caller"

    def __init__(self, images: Tensor, captions: Sequence[str] | None = None, name: str = "images in memory") -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"{name} should have shape (N, 3, H, W), got {tuple(images.shape)}")
        if captions is not None and len(captions) != len(images):
            raise UserError(f"{name}: {len(images)} images and {len(captions)} captions; give one for each image")
        self.images, self.name = images, name
        self._captions = None if captions is None else list(captions)

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> str:
        return f"image {index}" if self._captions is None else self._captions[index]

    def captions(self) -> list[str] | None:
        return self._captions

    def read_bytes(self, index: int) -> bytes:
        image = self.images[index].cpu()
        kind = ""
        if image.is_floating_point():
            kind, image = str(image.dtype), image.float()
        return f"{tuple(self.images.shape)}{kind}".encode() + image.contiguous().numpy().tobytes()

    def read(self, index: int) -> Tensor:
        return self.images[index]


def gathered(images: Iterable[Tensor], name: str = "images") -> InMemory:
    """Images from a list or an iterator, such as that of `models.generate.generate`; it is read to its end.

    Args:
        images: images of shape (3, H, W), batches (N, 3, H, W), or both; all of one size and one dtype.
        name: the name of the argument, for errors.

    Raises:
        UserError: there is no image, an item is no such tensor, or sizes or dtypes differ.
    """
    kept: list[Tensor] = []
    for i, item in enumerate(images):
        if not isinstance(item, Tensor):
            raise UserError(
                f"{name}[{i}] is {shown(item)}; it must be a tensor of shape (3, H, W) or (N, 3, H, W); "
                "torch.from_numpy makes one of an array"
            )
        batch = item.detach().cpu()
        batch = batch[None] if batch.ndim == 3 else batch
        if batch.ndim != 4 or batch.shape[1] != 3:
            raise UserError(f"{name}[{i}] has shape {tuple(item.shape)}; it should be (3, H, W) or (N, 3, H, W)")
        if kept and (batch.dtype, batch.shape[1:]) != (kept[0].dtype, kept[0].shape[1:]):
            found, first = (f"{b.dtype} {tuple(b.shape[1:])}" for b in (batch, kept[0]))
            raise UserError(f"{name}[{i}] holds {found} and {name}[0] {first}; they must be of one size and dtype")
        kept.append(batch)
    if not kept:
        raise UserError(f"{name} holds no image")
    return InMemory(torch.cat(kept))
