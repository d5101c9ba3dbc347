"""The codec's networks as one module: images to code to images, for training and for `Codec`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .bitstream import HIGHEST_QUALITY
from .decoder import Decoder
from .encoder import Encoder
from .lapped import LappedTransform
from .latent_codec import Coded, LatentCodec
from .one_step import DenoiserSettings, OneStep

STEPS = (1.3, 0.93, 0.61, 0.42, 0.28, 0.19)  # quantisation steps of the levels, on the scale of the coefficients
MULTIPLE = 64  # of pixels, which the hyper-latent needs


@dataclass(frozen=True)
class CodecSettings:
    """The shape of the networks; a saved codec holds it as JSON.

    Args:
        channels: C of the code at f16, a multiple of 4.
        hyper: Z of the hyper-latent at f64.
        levels: levels of quality, from 0 to 100; 100 is a multiple of `levels` - 1.
        encoder_widths: widths of the encoder at f4, f8 and f16.
        decoder_widths: widths of the decoder at f4 and f8.
        denoiser: the denoiser of the code; None for none.
    """

    channels: int = 192
    hyper: int = 48
    levels: int = 6
    encoder_widths: tuple[int, int, int] = (32, 64, 96)
    decoder_widths: tuple[int, int] = (48, 96)
    denoiser: DenoiserSettings | None = None

    def __post_init__(self) -> None:
        widths = (*self.encoder_widths, *self.decoder_widths)
        numbers = (self.channels, self.hyper, self.levels, *widths)
        if not all(isinstance(n, int) and 1 <= n <= 4096 for n in numbers) or (
            len(self.encoder_widths) != 3 or len(self.decoder_widths) != 2
        ):
            raise UserError(f"the shape of the codec is {self}; its numbers must be whole, from 1 to 4096")
        if self.channels % 4 or self.channels > 768:
            raise UserError(f"channels is {self.channels}; it must be a multiple of 4, at most 768")
        if self.levels < 2 or HIGHEST_QUALITY % (self.levels - 1):
            raise UserError(f"levels is {self.levels}; levels - 1 must divide {HIGHEST_QUALITY}")


class Reconstruction(NamedTuple):
    """What training sees of images.

    Attributes:
        images: (B, 3, H, W) in about [0, 1], not clamped.
        clean: (B, C, H/16, W/16) coefficients after the denoiser.
        coded: the code as the decoder has it, before the denoiser, and its bits.
    """

    images: Tensor
    clean: Tensor
    coded: Coded

    @property
    def y_bits(self) -> Tensor:
        """(B,) estimated bits of the code."""
        return self.coded.y_bits

    @property
    def z_bits(self) -> Tensor:
        """(B,) estimated bits of the hyper-latent."""
        return self.coded.z_bits


class CodecNetwork(nn.Module):
    """Encoder, entropy model and decoder.

    Args:
        settings: the shape.
        order: (C,) numbers of the channels of the lapped transform, with the largest variance first.
        scales: (C,) root mean squares of their coefficients.

    Attributes:
        stride: pixels a position of the code.
        multiple: pixels a position of the hyper-latent; sides of images are multiples of it.
    """

    stride, multiple = 16, MULTIPLE

    def __init__(self, settings: CodecSettings, order: Sequence[int], scales: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.lapped = LappedTransform(order)
        made = trained_parts(settings, scales, level_steps(settings.levels))
        self.encoder, self.latent_codec, self.decoder = made["encoder"], made["latent_codec"], made["decoder"]
        self.denoiser = made.get("denoiser")

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], whose sides are multiples of 64, to coefficients (B, C, H/16, W/16)."""
        x = images - 0.5
        with torch.autocast(images.device.type, enabled=False):
            linear: Tensor = self.lapped(x)
        return linear + self.encoder(x).float()

    def decode(self, y: Tensor, quality: Tensor, indexes: Tensor) -> Tensor:
        """Coefficients to images.

        Args:
            y: (B, C, h, w).
            quality: (B,) in [0, 100].
            indexes: scale indexes of the entropy model, (B, C, h, w), for the denoiser.

        Returns:
            (B, 3, 16 h, 16 w), not clamped.
        """
        return self.decode_clean(self.denoised(y, quality, indexes), quality)

    def denoised(self, y: Tensor, quality: Tensor, indexes: Tensor) -> Tensor:
        """The coefficients after the denoiser, or as they are if there is none."""
        return y if self.denoiser is None else self.denoiser(y, indexes, quality)  # type: ignore[no-any-return]

    def decode_clean(self, y: Tensor, quality: Tensor) -> Tensor:
        """Coefficients after the denoiser, (B, C, h, w), to images."""
        with torch.autocast(y.device.type, enabled=False):
            linear = self.lapped.inverse(y.float())
        return self.decoder(linear, quality) + 0.5  # type: ignore[no-any-return]

    def forward(self, images: Tensor, quality: Tensor, noise: Tensor, z_noise: Tensor) -> Reconstruction:
        """Train: code and decode; see `LatentCodec.forward`."""
        coded = self.latent_codec(self.encode(images), quality, noise, z_noise)
        clean = self.denoised(coded.y, quality, coded.indexes)
        return Reconstruction(self.decode_clean(clean, quality), clean, coded)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, quality: Tensor) -> tuple[Tensor, float]:
        """What the decoder makes of images (B, 3, H, W), and the bits that all of them are estimated to take."""
        coded = self.latent_codec.rounded(self.encode(images), quality)
        return self.decode(coded.y, quality, coded.indexes).float(), float(coded.y_bits.sum() + coded.z_bits.sum())


def trained_parts(settings: CodecSettings, scales: Tensor, steps: Tensor) -> dict[str, Any]:
    """The networks of a codec by name, all but the transform.

    Args:
        settings: the shape.
        scales: (C,) root mean squares of the coefficients, for the start.
        steps: (L,) quantisation steps, for the start.
    """
    made: dict[str, Any] = {
        "encoder": Encoder(settings.channels, settings.encoder_widths),
        "latent_codec": LatentCodec(settings.channels, scales, steps, settings.hyper),
        "decoder": Decoder(settings.levels, settings.decoder_widths),
    }
    if settings.denoiser is not None:
        made["denoiser"] = OneStep(settings.denoiser, settings.channels, settings.levels)
    return made


def level_steps(levels: int) -> Tensor:
    """Quantisation steps of so many levels, between the six that are known to give 0.05 to 0.5 bits a pixel."""
    known, found = [math.log(step) for step in STEPS], []
    for level in range(levels):
        place = level * (len(known) - 1) / (levels - 1)
        low = min(int(place), len(known) - 2)
        found.append(math.exp(known[low] + (place - low) * (known[low + 1] - known[low])))
    return torch.tensor(found)
