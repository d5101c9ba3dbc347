"""What the codec trades: bits against squared error and perceptual distance, at each quality; and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.codec.layers import between_levels
from diffdistill.codec.network import Reconstruction
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError

from .base import Validation
from .codec_crops import Crops
from .codec_loss import PerceptualLoss

# by level, coarsest first: weights of the squared error, of the perceptual distance, and of the whole sample
ERROR_WEIGHTS = (5.0, 12.0, 28.0, 65.0, 150.0, 350.0)
PERCEPTUAL_WEIGHTS = (0.2, 0.5, 1.2, 3.0, 8.0, 20.0)
SAMPLE_WEIGHTS = (2.6, 2.0, 1.5, 1.0, 0.7, 0.45)


@dataclass(frozen=True)
class CodecLoss:
    """What is traded for bits.

    Args:
        error: weight of the squared error, beside its weight by quality.
        masking: how much more an error counts where the photograph is smooth, since texture hides it: an exponent of
            `smoothness`. 0 for none. With 1 an error counts 2.5 times on a flat surface, and down to .06
            times in texture.
        perceptual: weight of the perceptual distance, beside its weight by quality; 0 for none.
        perceptual_side: side in pixels of the part of a crop on which the perceptual distance is measured.
        perceptual_scales: the part is enlarged by one of these, drawn for each sample; its side before that is
            perceptual_side / scale, or that of the crop if it is smaller. A codec that is trained at one scale learns
            what that scale does not see.
        alignment: weight of the distance between the direction of the denoised code and that of the encoder's, at each
            place, beside the perceptual weight by quality (DiT-IC's self-distillation; its released code has 0.05 of
            the weight of LPIPS). In `ImageCodec` it needs `init_from`.
        margin: how much of that distance is free.
    """

    error: float = 2.0
    masking: float = 1.0
    perceptual: float = 0.2
    perceptual_side: int = 128
    perceptual_scales: tuple[float, ...] = (0.5, 1.0, 2.0, 2.0)
    alignment: float = 0.0
    margin: float = 0.5


class RateDistortion:
    """Bits a pixel + a(q) squared error + b(q) perceptual distance of each sample.

    Args:
        settings: the weights.
        crop: side of the crops in pixels.

    Attributes:
        perceptual: the network of the perceptual distance; None without one.

    Raises:
        UserError: a setting is out of its range, or the weights of the perceptual distance are not there.
    """

    def __init__(self, settings: CodecLoss, crop: int) -> None:
        if not 32 <= settings.perceptual_side <= crop:
            raise UserError(f"loss.perceptual_side is {settings.perceptual_side}; it must be in [32, {crop}]")
        scales = settings.perceptual_scales
        for name in ("error", "masking", "perceptual", "alignment", "margin"):
            if not 0 <= getattr(settings, name) < float("inf"):
                raise UserError(f"loss.{name} is {getattr(settings, name)}; it must be a number from 0")
        if not scales or not all(0.25 <= scale <= 4 for scale in scales):
            raise UserError(f"loss.perceptual_scales is {list(scales)}; it must be numbers in [0.25, 4]")
        self.settings = settings
        self.perceptual = PerceptualLoss() if settings.perceptual else None

    def __call__(
        self, x: Tensor, made: Reconstruction, quality: Tensor, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, with a graph, and numbers of each sample for the log.

        Args:
            x: images (B, 3, H, W) in [0, 1].
            made: what the codec made of them.
            quality: (B,) integers in [0, 100].
            random: random numbers of the batch.
        """
        loss, pixels, y = self.settings, x.shape[-1] * x.shape[-2], made.images.float()
        z_bpp, bpp = made.z_bits / pixels, (made.y_bits + made.z_bits) / pixels
        squares = (y - x).square()
        error = squares.mean((1, 2, 3))
        weights = weights_of(quality)
        seen = (smoothness(x) ** loss.masking * squares).mean((1, 2, 3)) if loss.masking else error
        total = bpp + loss.error * weights[:, 0] * seen
        logs = {"bpp": bpp, "z_bpp": z_bpp, "error": error, "psnr_db": -10 * error.log10()}
        if self.perceptual is not None:
            place, side = random.uniform("window", (2,)), loss.perceptual_side
            draws = (random.uniform("scale") * len(loss.perceptual_scales)).long().tolist()
            sides = [min(x.shape[-1], round(side / loss.perceptual_scales[draw])) for draw in draws]
            distance = self.perceptual(*(cut(images, place, sides, side) for images in (x, y)))
            total = total + loss.perceptual * weights[:, 1] * distance
            logs["perceptual"] = distance
        return (weights[:, 2] * total).mean(), logs

    def aligned(self, distances: Tensor, quality: Tensor) -> Tensor:
        """The term of an alignment (B,) in the loss of a batch."""
        weights = weights_of(quality)
        return self.settings.alignment * (weights[:, 2] * weights[:, 1] * distances).mean()

    @torch.no_grad()
    def show(self, network: Any, crops: Crops, device: torch.device) -> Validation:
        """The kept photographs, or else the first one, at three qualities: bits a pixel, PSNR, perceptual distance."""
        numbers: dict[str, float] = {}
        shown = []
        for quality in (10, 50, 90):
            found = []
            for x in crops.shown(network.multiple):
                x = x.to(device)
                with torch.autocast(device.type, enabled=False):  # as files are made
                    y, bits = network.reconstruct(x, torch.tensor([float(quality)], device=device))
                y = y.clamp(0, 1)
                distance = 0.0 if self.perceptual is None else float(self.perceptual(x, y))
                found.append((bits / x[0, 0].numel(), float(-10 * (y - x).square().mean().log10()), distance))
                shown += [x[0], y[0]] if quality == 50 else [y[0]]
            means = torch.tensor(found).mean(0).tolist()
            names = (f"bpp_q{quality}", f"psnr_db_q{quality}", f"perceptual_q{quality}")
            numbers |= dict(zip(names, means, strict=True))
        side = min(min(image.shape[1:]) for image in shown)
        return Validation(torch.stack([image[:, :side, :side] for image in shown]), numbers)


def weights_of(quality: Tensor) -> Tensor:
    """(B, 3): weights of the squared error, of the perceptual distance, and of the sample, at each quality."""
    levels = torch.tensor([ERROR_WEIGHTS, PERCEPTUAL_WEIGHTS, SAMPLE_WEIGHTS], device=quality.device).T
    return between_levels(levels.log(), quality).exp()


def smoothness(images: Tensor, middle: float = 0.03, least: float = 3 / 255) -> Tensor:
    """middle / sqrt(variance + least^2) of the smoothest square around each pixel: above 1 where an image is smooth.

    Squares have 8 x 8 pixels. A pixel beside an edge has a square without the edge near it, so that ripples which an
    edge leaves on a smooth surface count in full.

    Args:
        images: (B, 3, H, W) in [0, 1]; sides are multiples of 8, from 16.
        middle: the standard deviation at which it is about 1.
        least: added to the standard deviation.

    Returns:
        (B, 1, H, W).
    """
    mean, square = (F.avg_pool2d(x, 8, 4, 2, count_include_pad=False) for x in (images, images.square()))
    variance = (square - mean.square()).clamp_min(0).mean(1, keepdim=True)
    found = F.max_pool2d(middle / (variance + least**2).sqrt(), 3, 1, 1)
    return F.interpolate(found, size=images.shape[-2:], mode="bilinear")


def cut(images: Tensor, places: Tensor, sides: Sequence[int], side: int) -> Tensor:
    """A square of each image, at places (B, 2) in [0, 1), with sides of its own, resized to (B, 3, side, side)."""
    made = []
    for x, place, own in zip(images, places.tolist(), sides, strict=True):
        up, left = (int(part * (x.shape[-1] - own + 1)) for part in place)
        square = x[None, :, up : up + own, left : left + own]
        if own != side:
            square = F.interpolate(square, size=side, mode="bilinear", antialias=own > side)
        made.append(square)
    return torch.cat(made)
