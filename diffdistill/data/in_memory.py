"""A source of images that are in memory already."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffdistill.data.source import Source
from diffdistill.errors import UserError


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
