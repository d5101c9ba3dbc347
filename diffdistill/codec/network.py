"""The codec's networks as one module: images to code to images, for training and for `Codec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .decoder import Decoder
from .encoder import Encoder
from .lapped import LappedTransform
from .latent_codec import LatentCodec
from .one_step import DenoiserSettings, OneStep
from .scales import QUALITIES

STEPS = (1.3, 0.93, 0.61, 0.42, 0.28, 0.19)  # quantisation steps of the levels, on the scale of the coefficients
MULTIPLE = 64  # of pixels, which the hyper-latent needs


@dataclass(frozen=True)
class CodecSettings:
    """The shape of the networks; a saved codec holds it as JSON.

    Args:
        channels: C of the code at f16, a multiple of 4.
        hyper: Z of the hyper-latent at f64.
        latent: channels of the latent in which a denoiser runs, at f16.
        levels: levels of quality, from 0 to 100; 100 is a multiple of `levels` - 1.
        encoder_widths: widths of the encoder at f4, f8 and f16.
        decoder_widths: widths of the decoder at f4, f8 and f16.
        denoiser: the denoiser in the decoder; None for none.
    """

    channels: int = 192
    hyper: int = 48
    latent: int = 32
    levels: int = 6
    encoder_widths: tuple[int, int, int] = (32, 64, 96)
    decoder_widths: tuple[int, int, int] = (48, 96, 160)
    denoiser: DenoiserSettings | None = None

    def __post_init__(self) -> None:
        widths = (*self.encoder_widths, *self.decoder_widths)
        numbers = (self.channels, self.hyper, self.latent, self.levels, *widths)
        if not all(isinstance(n, int) and 1 <= n <= 4096 for n in numbers) or len(widths) != 6:
            raise UserError(f"the shape of the codec is {self}; its numbers must be whole, from 1 to 4096")
        if self.channels % 4 or self.channels > 768:
            raise UserError(f"channels is {self.channels}; it must be a multiple of 4, at most 768")
        if self.levels < 2 or QUALITIES % (self.levels - 1):
            raise UserError(f"levels is {self.levels}; levels - 1 must divide {QUALITIES}")


class Reconstruction(NamedTuple):
    """What training sees of images.

    Attributes:
        images: (B, 3, H, W) in about [0, 1], not clamped.
        latent: u (B, latent, H/16, W/16), after the denoiser.
        y_bits: (B,) estimated bits of the code.
        z_bits: (B,) estimated bits of the hyper-latent.
        y: (B, C, H/16, W/16) coefficients as the decoder has them.
    """

    images: Tensor
    latent: Tensor
    y_bits: Tensor
    z_bits: Tensor
    y: Tensor


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
        self.encoder = Encoder(settings.channels, settings.encoder_widths)
        self.latent_codec = LatentCodec(settings.channels, scales, level_steps(settings.levels), settings.hyper)
        self.decoder = Decoder(settings.channels, settings.levels, settings.latent, settings.decoder_widths)
        d = settings.denoiser
        self.denoiser = None if d is None else OneStep(d, settings.latent, settings.channels, settings.levels)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], whose sides are multiples of 64, to coefficients (B, C, H/16, W/16)."""
        x = images - 0.5
        with torch.autocast(images.device.type, enabled=False):
            linear: Tensor = self.lapped(x)
        return linear + self.encoder(x).float()

    def decode(self, y: Tensor, quality: Tensor, indexes: Tensor, latent: Tensor | None = None) -> Tensor:
        """Coefficients to images.

        Args:
            y: (B, C, h, w); h and w are even.
            quality: (B,) in [0, 100].
            indexes: scale indexes of the entropy model, (B, C, h, w), for the denoiser.
            latent: u in place of that of the denoiser, (B, latent, h, w).

        Returns:
            (B, 3, 16 h, 16 w), not clamped.
        """
        return self.decode_with_latent(y, quality, indexes, latent)[0]

    def decode_with_latent(
        self, y: Tensor, quality: Tensor, indexes: Tensor, latent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`decode`, and the latent u after the denoiser."""
        linear = self.linear(y)
        u, x8, x4 = self.decoder.latent(linear, y, quality)
        if latent is not None:
            u = latent
        elif self.denoiser is not None:
            u = self.denoiser(u, y, indexes, quality)
        return linear + self.decoder.correction(u, x8, x4) + 0.5, u

    def linear(self, y: Tensor) -> Tensor:
        """The inverse lapped transform of coefficients (B, C, h, w), around 0."""
        with torch.autocast(y.device.type, enabled=False):
            return self.lapped.inverse(y)

    def latent(self, y: Tensor, quality: Tensor) -> Tensor:
        """u of coefficients (B, C, h, w), before the denoiser."""
        u: Tensor = self.decoder.latent(self.linear(y), y, quality)[0]
        return u

    def forward(self, images: Tensor, quality: Tensor, noise: Tensor, z_noise: Tensor) -> Reconstruction:
        """Train: code and decode; see `LatentCodec.forward`."""
        coded = self.latent_codec(self.encode(images), quality, noise, z_noise)
        return Reconstruction(
            *self.decode_with_latent(coded.y, quality, coded.indexes), coded.y_bits, coded.z_bits, coded.y
        )

    @torch.no_grad()
    def reconstruct(self, images: Tensor, quality: Tensor) -> tuple[Tensor, float]:
        """What the decoder makes of images (B, 3, H, W), and the bits that all of them are estimated to take."""
        coded = self.latent_codec.rounded(self.encode(images), quality)
        return self.decode(coded.y, quality, coded.indexes).float(), float(coded.y_bits.sum() + coded.z_bits.sum())


def level_steps(levels: int) -> Tensor:
    """Quantisation steps of so many levels, between the six that are known to give 0.05 to 0.5 bits a pixel."""
    known = torch.tensor(STEPS).log()
    places = torch.linspace(0, len(STEPS) - 1, levels)
    low = places.floor().long().clamp(max=len(STEPS) - 2)
    return (known[low] + (places - low) * (known[low + 1] - known[low])).exp()
