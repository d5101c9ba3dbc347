"""Images to bytes and back, with a trained codec.

>>> from diffdistill.codec import Codec                       # doctest: +SKIP
>>> codec = Codec()                                           # doctest: +SKIP
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

from diffdistill.errors import UserError

from . import strips, tiles
from .bitstream import (
    HIGHEST_QUALITY,
    VERSION,
    CodedImage,
    DamagedFileError,
    OtherModelError,
    check_size,
    from_bytes,
    to_bytes,
)
from .coder import RangeCoder
from .latent_codec import nearest_level
from .saved import open_codec
from .scales import Z_MOST

SHIPPED = Path(__file__).parents[2] / "assets" / "codec"
R_MOST = (1 << 15) - 1  # of a residual, which an escape can hold


class Integers(NamedTuple):
    """What a file holds of an image: z (Z, h, w), r (C, 4 h, 4 w) int16, and the scale indexes, which z gives."""

    z: np.ndarray
    r: np.ndarray
    indexes: np.ndarray


class Analysis(NamedTuple):
    """What the encoder makes of an image before a quality is chosen.

    Attributes:
        y: coefficients, (1, C, h, w).
        width: of the image in pixels.
        height: of the image in pixels.
        grey: whether the image has one channel.
        model: the fingerprint of the codec that made it, and that alone can encode it.
    """

    y: Tensor
    width: int
    height: int
    grey: bool
    model: str


class Codec:
    """A trained codec.

    Args:
        folder: what `save_codec` or `save_pretrained_codec` wrote; None for the codec that ships.
        device: where the networks run. The integers of a file do not depend on it.
        tile: images larger than this, in pixels, are processed in tiles. It is a multiple of 64, at least 512.

    Raises:
        UserError: there is no codec in the folder, it is damaged, there is no such device, or constriction is not
            installed.
    """

    def __init__(
        self, folder: str | Path | None = None, device: str | torch.device = "cpu", tile: int = tiles.TILE
    ) -> None:
        tiles.check_tile(tile)
        _check_device(device)
        saved = open_codec(SHIPPED if folder is None else folder)
        self.network, self.fingerprint = saved.network.to(device), saved.fingerprint
        self.device, self.tile = torch.device(device), tile
        self._coder = RangeCoder(saved.z_tables, saved.r_tables)
        self.z_tables, self.r_tables = saved.z_tables, saved.r_tables

    @property
    def model(self) -> bytes:
        """The four bytes of the fingerprint that files hold."""
        return bytes.fromhex(self.fingerprint[:8])

    @property
    def identity(self) -> str:
        """What all files depend on beside the image and the quality: the fingerprint, and the version of the format."""
        return f"{self.fingerprint} in format {VERSION}"

    @torch.inference_mode()
    def analyse(self, image: Tensor) -> Analysis:
        """The part of encoding that does not depend on the quality; `encode` takes its result in place of the image.

        Args:
            image: uint8 of shape (3, H, W), or (1, H, W) for a grey image.

        Raises:
            ValueError: the image is of another type or shape.
            TooLargeError: it has more pixels than a file can say.
        """
        if not isinstance(image, Tensor):
            raise ValueError(f"an image should be a uint8 tensor of shape (3, H, W) or (1, H, W), got {type(image)}")
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
            raise ValueError(
                f"an image should be uint8 of shape (3, H, W) or (1, H, W), got {image.dtype} of {tuple(image.shape)}"
            )
        height, width = image.shape[1:]
        check_size(width, height, "the image")
        with torch.autocast(self.device.type, enabled=False):
            y = tiles.encode(self.network, image.expand(3, -1, -1), self.device, self.tile)
        return Analysis(y, width, height, image.shape[0] == 1, self.fingerprint)

    def encode(self, image: Tensor | Analysis, quality: int = 50, check_integers: bool = False) -> bytes:
        """An image to a file.

        Args:
            image: uint8 of shape (3, H, W), or (1, H, W) for a grey image, which the file then says; or what `analyse`
                made of it, which saves time when several qualities are tried.
            quality: 0 (smallest) to 100 (best).
            check_integers: store a checksum of the integers, so that a decoder that reads other ones says so.

        Raises:
            ValueError: the image is of another type or shape, or was analysed by another codec.
            TooLargeError: it has more pixels than a file can say.
            UserError: the quality is out of its range.
        """
        whole = isinstance(quality, (int, np.integer)) and not isinstance(quality, bool)
        if not whole or not 0 <= quality <= HIGHEST_QUALITY:
            raise UserError(f"quality is {quality}; it must be a whole number in [0, {HIGHEST_QUALITY}]")
        quality, of = int(quality), image if isinstance(image, Analysis) else self.analyse(image)
        if of.model != self.fingerprint:
            raise ValueError("the image was analysed by another codec")
        found, _ = self.integers(of, quality)
        payload = self._coder.encode(found.z, found.r, found.indexes, self._level(quality))
        crc = checksum(found) if check_integers else None
        return to_bytes(CodedImage(of.width, of.height, quality, self.model, payload, crc, of.grey))

    def _level(self, quality: int) -> int:
        return int(nearest_level(torch.tensor([quality]), self.network.settings.levels))

    @torch.inference_mode()
    def integers(self, image: Tensor | Analysis, quality: int) -> tuple[Integers, Tensor]:
        """What a file would hold, and the code as a decoder has it, (1, C, h, w) coefficients."""
        y = (image if isinstance(image, Analysis) else self.analyse(image)).y
        of = torch.tensor([float(quality)], device=self.device)
        codec = self.network.latent_codec
        with torch.autocast(self.device.type, enabled=False):
            scaled = codec.scaled(y, of)
            z = strips.hyper_latent(codec, scaled, of).clamp(-Z_MOST, Z_MOST).round()
            indexes = strips.scale_indexes(codec, z, of)
            settled, means = strips.settle(codec, codec.features(z, of), None, scaled, indexes)
            assert means is not None
            r = scaled.sub_(means).round_().clamp_(-R_MOST, R_MOST)
        residuals = r[0].to(torch.int16).cpu().numpy()
        residuals *= indexes > 0
        made = Integers(z[0].cpu().to(torch.int32).numpy(), residuals, indexes)
        return made, codec.unscaled(settled, of)

    def decode(self, data: bytes, what: str = "the file") -> Tensor:
        """A file to an image, uint8 of shape (3, H, W); the channels of a grey image are equal.

        Whether a file is of a grey image, `diffdistill.codec.bitstream.from_bytes(data).grey` says.

        Raises:
            CodecError: the bytes are no file of the codec, damaged, or of another model.
            ValueError: `data` is no bytes, such as the name of a file.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ValueError(f"decode takes the bytes of a file, got {type(data)}")
        coded = from_bytes(bytes(data), what)
        return self.image(self.read_integers(coded, what), coded.quality, (coded.height, coded.width), coded.grey)

    @torch.inference_mode()
    def read_integers(self, coded: CodedImage, what: str = "the file") -> Integers:
        """The integers of a file.

        Raises:
            CodecError: the file is damaged, or of another model.
        """
        if coded.model != self.model:
            raise OtherModelError(
                f"{what} was made with the model {coded.model.hex()}, and this one is {self.model.hex()}"
            )
        h, w = (-(-side // self.network.multiple) for side in (coded.height, coded.width))
        level = self._level(coded.quality)
        least = self._coder.least_bytes(h * w, level)
        if len(coded.payload) < least:
            raise DamagedFileError(
                f"{what} is damaged: {coded.width}x{coded.height} pixels take {least:,} bytes or more, and it holds "
                f"{len(coded.payload):,}"
            )
        try:
            z, decoder = self._coder.decode_z(coded.payload, (h, w), level)
            of = torch.tensor([float(coded.quality)], device=self.device)
            codec = self.network.latent_codec
            long_enough = self._coder.check_length(coded.payload)
            indexes = strips.scale_indexes(codec, torch.from_numpy(z).to(self.device)[None].double(), of, long_enough)
            found = Integers(z, self._coder.decode_r(decoder, indexes), indexes)
        except DamagedFileError as error:
            raise DamagedFileError(f"{what} is damaged: {error}") from error
        if coded.integers_crc is not None and coded.integers_crc != checksum(found):
            raise DamagedFileError(f"{what} decodes to other integers than were encoded")
        return found

    def image(self, found: Integers, quality: int, size: tuple[int, int], grey: bool = False) -> Tensor:
        """The image of integers, uint8 of shape (3, *size), with equal channels if it is grey."""
        return self._image(found, quality, size, grey).clone()  # one that can be changed, and differentiated through

    @torch.inference_mode()
    def _image(self, found: Integers, quality: int, size: tuple[int, int], grey: bool) -> Tensor:
        of = torch.tensor([float(quality)], device=self.device)
        codec = self.network.latent_codec
        z = torch.from_numpy(found.z).to(self.device)[None].float()
        with torch.autocast(self.device.type, enabled=False):
            settled, _ = strips.settle(codec, codec.features(z, of), found.r, None)
            y = codec.unscaled(settled, of)
            return tiles.decode(self.network, y, of, found.indexes, size, grey, self.tile)


def _check_device(device: str | torch.device) -> None:
    """Raise UserError unless tensors can be made on a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"device is {str(device)!r}, which cannot be used here: {reason}") from error


def checksum(found: Integers) -> int:
    """CRC-32 of z and r as 16-bit little-endian integers."""
    return zlib.crc32(found.r.astype("<i2").tobytes(), zlib.crc32(found.z.astype("<i2").tobytes()))
