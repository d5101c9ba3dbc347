"""The image codec: rate, distortion and perceptual distance, for all qualities at once.

    image --encoder--> code --rounded--> bits (rate)
                            `--decoder--> image: squared error, perceptual distance

Notable:
- each sample has a quality of its own, and the loss weighs its distortion accordingly, so that one network covers the
  whole range of rates;
- rates are those of rounded values; noise in place of rounding gives the gradient (see `codec.latent_codec`);
- each twelfth photograph is kept from training and shown in validation. With 12 or fewer photographs none is kept, and
  validation shows the first one, on which the codec is trained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.codec.lapped import channels_by_variance
from diffdistill.codec.layers import between_levels
from diffdistill.codec.network import MULTIPLE, CodecNetwork, CodecSettings
from diffdistill.codec.saved import load_codec, save_codec
from diffdistill.codec.scales import QUALITIES
from diffdistill.data.photographs import PhotographData, load_photographs, random_crop
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.launched import is_first

from .base import Batch, Loss, Method, OptimizerSettings, ParameterGroup, Phase, Validation, unwrap
from .codec_loss import PerceptualLoss

# by level, coarsest first: weights of the squared error, of the perceptual distance, and of the whole sample
ERROR_WEIGHTS = (5.0, 12.0, 28.0, 65.0, 150.0, 350.0)
PERCEPTUAL_WEIGHTS = (0.2, 0.5, 1.2, 3.0, 8.0, 20.0)
SAMPLE_WEIGHTS = (2.6, 2.0, 1.5, 1.0, 0.7, 0.45)
HELD = 12  # each so many photographs, one is kept for validation
SIDE = 512  # of the crops of validation, in pixels


@dataclass(frozen=True)
class CodecLoss:
    """What is traded for bits.

    Args:
        error: weight of the squared error, beside its weight by quality.
        perceptual: weight of the perceptual distance, beside its weight by quality; 0 for none.
        perceptual_side: side in pixels of the part of a crop on which the perceptual distance is measured.
    """

    error: float = 1.0
    perceptual: float = 0.6
    perceptual_side: int = 128


class ImageCodec(Method):
    """Train the codec on photographs.

    Args:
        data: where the photographs are.
        network: the shape of the networks.
        optimizer: the optimiser.
        loss: what is traded for bits.
        crop: side of the training crops in pixels, a multiple of 64.
        low_qualities: exponent of the draw of qualities, 100 u^x; above 1 for more of the low ones.
        init_from: a saved codec to start from; its shape must be `network`.

    Raises:
        UserError: a setting is out of its range, or there are no photographs.
    """

    averaged = "codec"

    def __init__(
        self,
        data: PhotographData,
        network: CodecSettings = CodecSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(
            5e-4,
            (0.9, 0.99),
            groups=(
                ParameterGroup(r"scales\.(offset|second_bias)", 2e-2),  # in steps of an index, a tenth of a scale
                ParameterGroup(r"prior|scales\.first_bias", 4e-3),
                ParameterGroup(r"latent_codec\.(hyper_)?gain", 2e-3),
                ParameterGroup(r"decoder\.out|encoder\.network\.6", 1e-4),  # of pixels and coefficients themselves
            ),
        ),
        loss: CodecLoss = CodecLoss(),
        crop: int = 256,
        low_qualities: float = 1.4,
        init_from: str | None = None,
    ) -> None:
        if crop % MULTIPLE or crop < 2 * MULTIPLE:
            raise UserError(f"crop is {crop}; it must be a multiple of {MULTIPLE}, from {2 * MULTIPLE}")
        if not 32 <= loss.perceptual_side <= crop:
            raise UserError(f"loss.perceptual_side is {loss.perceptual_side}; it must be in [32, {crop}]")
        self.loss, self.crop, self.low_qualities, self.settings = loss, crop, low_qualities, network
        self.photographs = load_photographs(data.source, crop)
        if self.photographs.left_out and is_first():
            small = f"{self.photographs.left_out} images of {data.source} are left out: a side is below {crop} pixels"
            print(f"note: {small}", file=sys.stderr, flush=True)
        self.content = {"data.source": self.photographs.digest}
        every = range(len(self.photographs.images))
        self.held = [i for i in every if i % HELD == HELD // 2] if len(every) > HELD else []
        trained = [i for i in every if i not in self.held]
        areas = [self.photographs.images[i][0].numel() for i in trained]
        cell = min(areas)
        self.records = [
            i for i, area in zip(trained, areas, strict=True) for _ in range(max(1, round((area / cell) ** 0.5)))
        ]
        crops = self._crops(range(min(256, 8 * len(trained))))
        order, scales = channels_by_variance(crops - 0.5, network.channels)
        made = CodecNetwork(network, order, scales).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made.latent_codec.calibrate(made.lapped(crops[:32] - 0.5))
        if init_from is not None:
            saved = load_codec(init_from)
            if saved.network.settings != network:
                raise UserError(
                    f"the codec at {init_from} has the shape {saved.network.settings}, not that of `network`"
                )
            made = saved.network.requires_grad_(True).train()
            self.content["init_from"] = saved.fingerprint
        self.networks = {"codec": made}
        self.optimizers = {"codec": optimizer}
        self.perceptual = PerceptualLoss() if loss.perceptual else None
        self.frozen = {} if self.perceptual is None else {"perceptual": self.perceptual}

    def __len__(self) -> int:
        return len(self.records)

    def _crops(self, indices: Sequence[int]) -> Tensor:
        """Crops of a seed of their own, for statistics: (N, 3, crop, crop) in [0, 1]."""
        random = SampleRandom(0, indices)
        return self._images([self.records[i % len(self.records)] for i in indices], random)

    def _images(self, photographs: Sequence[int], random: SampleRandom) -> Tensor:
        draws = random.uniform("crop", (8,)).tolist()
        pairs = zip(photographs, draws, strict=True)
        return (
            torch.stack([random_crop(self.photographs.images[i], self.crop, draw) for i, draw in pairs]).float() / 255
        )

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        images = self._images([self.records[i] for i in records], random).to(self.device)
        quality = (QUALITIES * random.uniform("quality").float() ** self.low_qualities).round()
        return {"images": images.contiguous(memory_format=torch.channels_last), "quality": quality.to(self.device)}

    def phases(self, step: int) -> list[Phase]:
        return [Phase("codec", "codec", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x, quality = batch["images"], batch["quality"]
        side = self.crop // 16
        noise = random.uniform("noise", (self.settings.channels, side, side)).float() - 0.5
        z_noise = random.uniform("z_noise", (self.settings.hyper, side // 4, side // 4)).float() - 0.5
        made = self.networks["codec"](x, quality, noise, z_noise)
        y, pixels = made.images.float(), self.crop**2
        z_bpp, bpp = made.z_bits / pixels, (made.y_bits + made.z_bits) / pixels
        error = (y - x).square().mean((1, 2, 3))
        weights = weights_of(quality)
        total = bpp + self.loss.error * weights[:, 0] * error
        logs = {"bpp": bpp, "z_bpp": z_bpp, "error": error, "psnr_db": -10 * error.log10()}
        if self.perceptual is not None:
            place = random.uniform("window", (2,))
            distance = self.perceptual(*(cut(images, place, self.loss.perceptual_side) for images in (x, y)))
            total = total + self.loss.perceptual * weights[:, 1] * distance
            logs["perceptual"] = distance
        return (weights[:, 2] * total).mean(), {name: value.detach().mean() for name, value in logs.items()}

    @torch.no_grad()
    def validate(self) -> Validation:
        """The kept photographs, or else the first one, at three qualities: bits a pixel, PSNR, perceptual distance."""
        network: CodecNetwork = unwrap(self.networks["codec"])
        numbers: dict[str, float] = {}
        shown = []
        for quality in (10, 50, 90):
            found = []
            for i in self.held or range(1):
                image = self.photographs.images[i]
                h, w = (min(SIDE, n // MULTIPLE * MULTIPLE) for n in image.shape[1:])
                top, left = (image.shape[1] - h) // 2, (image.shape[2] - w) // 2
                x = image[None, :, top : top + h, left : left + w].to(self.device).float() / 255
                y, bits = network.reconstruct(x, torch.tensor([float(quality)], device=self.device))
                distance = 0.0 if self.perceptual is None else float(self.perceptual(x, y.clamp(0, 1)))
                found.append((bits / (h * w), float(-10 * (y.clamp(0, 1) - x).square().mean().log10()), distance))
                shown += [x[0], y[0].clamp(0, 1)] if quality == 50 else [y[0].clamp(0, 1)]
            means = torch.tensor(found).mean(0).tolist()
            names = (f"bpp_q{quality}", f"psnr_db_q{quality}", f"perceptual_q{quality}")
            numbers |= dict(zip(names, means, strict=True))
        side = min(min(image.shape[1:]) for image in shown)
        return Validation(torch.stack([image[:, :side, :side] for image in shown]), numbers)

    def export(self, folder: Path) -> None:
        save_codec(unwrap(self.networks["codec"]), folder)


def weights_of(quality: Tensor) -> Tensor:
    """(B, 3): weights of the squared error, of the perceptual distance, and of the sample, at each quality."""
    levels = torch.tensor([ERROR_WEIGHTS, PERCEPTUAL_WEIGHTS, SAMPLE_WEIGHTS], device=quality.device).T
    return between_levels(levels.log(), quality).exp()


def cut(images: Tensor, places: Tensor, side: int) -> Tensor:
    """A square of each image, at places (B, 2) in [0, 1)."""
    span = images.shape[-1] - side + 1
    corners = (places * span).long().tolist()
    return torch.stack(
        [x[:, up : up + side, left : left + side] for x, (up, left) in zip(images, corners, strict=True)]
    )
