"""Images to bytes and back, with a trained codec.

>>> from diffdistill.codec import Codec                       # doctest: +SKIP
>>> codec = Codec("assets/codec")                             # doctest: +SKIP
>>> data = codec.encode(image, quality=50)                    # doctest: +SKIP
>>> image = codec.decode(data)                                # doctest: +SKIP
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError

from .bitstream import HIGHEST_QUALITY, CodedImage, DamagedFileError, OtherModelError, check_size, from_bytes, to_bytes
from .coder import RangeCoder
from .latent_codec import nearest_level
from .saved import open_codec
from .scales import Z_MOST

R_MOST = (1 << 15) - 1  # of a residual, which an escape can hold


class Integers(NamedTuple):
    """What a file holds of an image: z (Z, h, w), r (C, 4 h, 4 w), and the scale indexes, which z gives."""

    z: np.ndarray
    r: np.ndarray
    indexes: np.ndarray


class Codec:
    """A trained codec.

    Args:
        folder: what `save_codec` or `save_pretrained_codec` wrote.
        device: where the networks run. The integers of a file do not depend on it.

    Raises:
        UserError: there is no codec in the folder, it is damaged, or constriction is not installed.
    """

    def __init__(self, folder: str | Path = "assets/codec", device: str | torch.device = "cpu") -> None:
        saved = open_codec(folder)
        self.network, self.fingerprint = saved.network.to(device), saved.fingerprint
        self.device = torch.device(device)
        self._coder = RangeCoder(saved.z_tables, saved.r_tables)
        self._scales = saved.network.latent_codec.scales
        self.z_tables, self.r_tables = saved.z_tables, saved.r_tables

    @property
    def model(self) -> bytes:
        """The four bytes of the fingerprint that files hold."""
        return bytes.fromhex(self.fingerprint[:8])

    def encode(self, image: Tensor, quality: int = 50, check_integers: bool = False) -> bytes:
        """An image to a file.

        Args:
            image: uint8 of shape (3, H, W).
            quality: 0 (smallest) to 100 (best).
            check_integers: store a checksum of the integers, so that a decoder that reads other ones says so.

        Raises:
            ValueError: the image is of another type or shape, or the quality is out of its range.
        """
        _check(image, quality)
        found, _ = self.integers(image, quality)
        payload = self._coder.encode(found.z, found.r, found.indexes, self._level(quality))
        crc = checksum(found) if check_integers else None
        height, width = image.shape[1:]
        return to_bytes(CodedImage(width, height, quality, self.model, payload, crc))

    def _level(self, quality: int) -> int:
        return int(nearest_level(torch.tensor([quality]), self.network.settings.levels))

    @torch.inference_mode()
    def integers(self, image: Tensor, quality: int) -> tuple[Integers, Tensor]:
        """What a file would hold, and the code as a decoder has it, (1, C, h, w) coefficients."""
        of = torch.tensor([float(quality)], device=self.device)
        codec = self.network.latent_codec
        padded = _padded(image, self.network.multiple)
        with torch.autocast(self.device.type, enabled=False):
            scaled = codec.scaled(self.network.encode(padded.to(self.device).float()[None] / 255), of)
            z = codec.hyper_latent(scaled, of).clamp(-Z_MOST, Z_MOST).round()
            indexes = self._scales(z, of)
            settled, means = codec.settle(codec.features(z, of), None, scaled)
            r = (scaled - means).round().clamp(-R_MOST, R_MOST)
        made = Integers(*(x[0].cpu().to(torch.int32).numpy() for x in (z, r, indexes)))
        return made, codec.unscaled(settled, of)

    def decode(self, data: bytes, what: str = "the file") -> Tensor:
        """A file to an image, uint8 of shape (3, H, W).

        Raises:
            CodecError: the bytes are no file of the codec, damaged, or of another model.
        """
        coded = from_bytes(data, what)
        return self.image(self.read_integers(coded, what), coded.quality, (coded.height, coded.width))

    @torch.inference_mode()
    def read_integers(self, coded: CodedImage, what: str = "the file") -> Integers:
        """The integers of a file."""
        if coded.model != self.model:
            raise OtherModelError(
                f"{what} was made with the model {coded.model.hex()}, and this one is {self.model.hex()}"
            )
        h, w = (-(-side // self.network.multiple) for side in (coded.height, coded.width))
        least = self._coder.least_bytes(h * w, 16 * h * w * self.network.settings.channels)
        if len(coded.payload) < least:
            raise DamagedFileError(
                f"{what} is damaged: {coded.width}x{coded.height} pixels take {least:,} bytes or more, and it holds "
                f"{len(coded.payload):,}"
            )
        try:
            z, decoder = self._coder.decode_z(coded.payload, (h, w), self._level(coded.quality))
            of = torch.tensor([float(coded.quality)], device=self.device)
            indexes = self._scales(torch.from_numpy(z).to(self.device)[None].double(), of)
            made = indexes[0].cpu().to(torch.int32).numpy()
            found = Integers(z, self._coder.decode_r(decoder, made), made)
        except DamagedFileError as error:
            raise DamagedFileError(f"{what} is damaged: {error}") from error
        if coded.integers_crc is not None and coded.integers_crc != checksum(found):
            raise DamagedFileError(f"{what} decodes to other integers than were encoded")
        return found

    @torch.inference_mode()
    def image(self, found: Integers, quality: int, size: tuple[int, int]) -> Tensor:
        """The image of integers, uint8 of shape (3, *size)."""
        of = torch.tensor([float(quality)], device=self.device)
        codec = self.network.latent_codec
        z, r = (torch.from_numpy(x).to(self.device)[None].float() for x in (found.z, found.r))
        with torch.autocast(self.device.type, enabled=False):
            settled, _ = codec.settle(codec.features(z, of), r, None)
            indexes = torch.from_numpy(found.indexes).to(self.device)[None].float()
            pixels = self.network.decode(codec.unscaled(settled, of), of, indexes)[0, :, : size[0], : size[1]]
        return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def checksum(found: Integers) -> int:
    """CRC-32 of z and r as 16-bit little-endian integers."""
    return zlib.crc32(found.r.astype("<i2").tobytes(), zlib.crc32(found.z.astype("<i2").tobytes()))


def _padded(image: Tensor, multiple: int) -> Tensor:
    """The image with its last row and column repeated, up to multiples of so many pixels."""
    height, width = image.shape[1:]
    more = (0, -width % multiple, 0, -height % multiple)
    return F.pad(image[None].float(), more, mode="replicate")[0].to(image.dtype)


def _check(image: Tensor, quality: int) -> None:
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"an image should be uint8 of shape (3, H, W), got {image.dtype} of {tuple(image.shape)}")
    check_size(image.shape[2], image.shape[1], "the image")
    if not isinstance(quality, int) or not 0 <= quality <= HIGHEST_QUALITY:
        raise UserError(f"quality is {quality}; it must be a whole number in [0, {HIGHEST_QUALITY}]")
