"""Classic image codecs, as rivals: JPEG, WebP, AVIF and JPEG XL by Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError


@dataclass(frozen=True)
class ClassicCodec:
    """A codec of Pillow.

    Args:
        name: in tables.
        format: Pillow's name.
        qualities: those that a curve is drawn through, smallest files first.
        options: of the encoder.
        plugin: the module that must be imported first, if any.
        jumps: qualities at which files become smaller than just below.
    """

    name: str
    format: str
    qualities: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    plugin: str | None = None
    jumps: tuple[int, ...] = ()

    def encode(self, image: Tensor, quality: int) -> bytes:
        """A uint8 image (3, H, W) to a file.

        Raises:
            UserError: this Pillow has no such codec.
        """
        from PIL import Image

        self._ready()
        file = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        picture.save(file, self.format, quality=quality, **self.options)
        return file.getvalue()

    def decode(self, data: bytes) -> Tensor:
        """A file to a uint8 image (3, H, W)."""
        from PIL import Image

        self._ready()
        with Image.open(io.BytesIO(data), formats=(self.format,)) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)

    def _ready(self) -> None:
        from PIL import Image

        if self.plugin is not None:
            try:
                __import__(self.plugin)
            except ImportError as error:
                raise UserError(f"{self.name} needs a plug-in of Pillow: pip install 'diffdistill[codec]'") from error
        Image.init()
        if self.format not in Image.SAVE:
            raise UserError(f"this Pillow has no {self.name}; install a newer one")


CLASSIC = {
    codec.name: codec
    for codec in (
        ClassicCodec("jpeg", "JPEG", (1, 2, 4, 6, 10, 15, 22, 30, 40, 60), {"optimize": True, "progressive": True}),
        ClassicCodec("webp", "WEBP", (0, 2, 5, 10, 20, 30, 45, 70), {"method": 6}),
        ClassicCodec(
            "avif", "AVIF", (0, 4, 8, 12, 16, 20, 24, 28, 36, 44, 54), {"speed": 4, "autotiling": False}
        ),  # tiles cost 1 to 2 % of the bytes
        # at 19 its files become 10 to 20 % smaller than at 18, and mostly better
        ClassicCodec("jxl", "JXL", (0, 6, 14, 19, 22, 25, 28, 34, 40, 60), {"effort": 7}, "pillow_jxl", (19,)),
    )
}
