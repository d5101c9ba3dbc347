"""The image codec: rate, distortion and perceptual distance, for all qualities at once.

    image --encoder--> code --rounded--> bits (rate)
                            `--decoder, with a denoiser or without--> image: squared error, perceptual distance
                                          `-- latent: alignment with the original's, a judge

Notable:
- each sample has a quality of its own, and the loss weighs its distortion accordingly, so that one network covers the
  whole range of rates;
- rates are those of rounded values; noise in place of rounding gives the gradient (see `codec.latent_codec`);
- with `trained: decoder` the encoder and the entropy model stay as they are, and so do the bits of every file. A
  denoiser from `CodecFlow` is adapted to one step in this way, or one is trained from nothing;
- each twelfth photograph is kept from training and shown in validation. With 12 or fewer photographs none is kept, and
  validation shows the first one, on which the codec is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.codec.alignments import cosine_alignment
from diffdistill.codec.lapped import channels_by_variance
from diffdistill.codec.layers import between_levels
from diffdistill.codec.network import MULTIPLE, CodecNetwork, CodecSettings
from diffdistill.codec.saved import load_codec, save_codec
from diffdistill.codec.scales import QUALITIES
from diffdistill.data.photographs import PhotographData
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError

from .base import Batch, Loss, Method, OptimizerSettings, ParameterGroup, Phase, Validation, unwrap
from .codec_crops import Crops, random_qualities
from .codec_flow import with_denoiser
from .codec_judge import CODE, CodecJudge, LatentBackbone, judge_of
from .codec_loss import PerceptualLoss
from .judge import Judge

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
            `smoothness`. 0 for none, 1 for at most 2.5 times as much.
        perceptual: weight of the perceptual distance, beside its weight by quality; 0 for none.
        perceptual_side: side in pixels of the part of a crop on which the perceptual distance is measured.
        alignment: weight of the distance between the direction of the denoised latent and that of the original's, at
            each place (DiT-IC's self-distillation; 0.05 in its released code). It needs `init_from`.
        margin: how much of that distance is free.
    """

    error: float = 1.0
    masking: float = 1.0
    perceptual: float = 0.3
    perceptual_side: int = 128
    alignment: float = 0.0
    margin: float = 0.5


class ImageCodec(Method):
    """Train the codec on photographs.

    Args:
        data: where the photographs are.
        network: the shape of the networks.
        optimizer: the optimiser.
        loss: what is traded for bits.
        crop: side of the training crops in pixels, a multiple of 64.
        low_qualities: exponent of the draw of qualities, 100 u^x; above 1 for more of the low ones.
        init_from: a saved codec to start from. Its shape must be `network`; it may lack the denoiser.
        trained: "all", or "decoder" for decoder and denoiser alone.
        judge: a score-distillation term on the latent. It needs `init_from` with a denoiser from `CodecFlow`.

    Raises:
        UserError: a setting is out of its range, the codec has another shape, or there are no photographs.
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
        trained: Literal["all", "decoder"] = "all",
        judge: CodecJudge = CodecJudge(),
    ) -> None:
        if crop % MULTIPLE or crop < 2 * MULTIPLE:
            raise UserError(f"crop is {crop}; it must be a multiple of {MULTIPLE}, from {2 * MULTIPLE}")
        if not 32 <= loss.perceptual_side <= crop:
            raise UserError(f"loss.perceptual_side is {loss.perceptual_side}; it must be in [32, {crop}]")
        if trained not in ("all", "decoder"):
            raise UserError(f"trained is {trained!r}; it must be 'all' or 'decoder'")
        if init_from is None and (trained != "all" or loss.alignment or judge.weight):
            raise UserError("trained, loss.alignment and judge need a trained codec; name one by init_from")
        self.loss, self.crop, self.low_qualities, self.settings = loss, crop, low_qualities, network
        self.crops = Crops(data, crop)
        self.content = content = {"data.source": self.crops.digest}
        self.frozen = frozen = dict[str, nn.Module]()
        made = self._new(network) if init_from is None else self._from(init_from, network)
        if init_from is not None:
            content["init_from"] = load_codec(init_from).fingerprint
        self.networks = {"codec": made}
        self.optimizers = {"codec": optimizer}
        self.perceptual = PerceptualLoss() if loss.perceptual else None
        if self.perceptual is not None:
            frozen["perceptual"] = self.perceptual
        self.reference: CodecNetwork | None = None
        if loss.alignment:
            self.reference = frozen["reference"] = copy.deepcopy(made).requires_grad_(False).eval()
        self.judging, self.judge = judge, self._judge(judge, made)
        if self.judge is not None:
            frozen["teacher"] = self.judge.teacher.backbone
        if trained == "decoder":
            for part in (made.encoder, made.latent_codec):
                part.requires_grad_(False)

    def _new(self, settings: CodecSettings) -> CodecNetwork:
        """A codec that starts as the lapped transform."""
        if settings.denoiser is not None:
            raise UserError("network.denoiser needs a trained codec; name one by init_from")
        crops = self.crops.for_statistics()
        order, scales = channels_by_variance(crops - 0.5, settings.channels)
        made = CodecNetwork(settings, order, scales)
        made.latent_codec.calibrate(made.lapped(crops[:32] - 0.5))
        return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def _from(self, folder: str, settings: CodecSettings) -> CodecNetwork:
        """A saved codec; if another denoiser is asked for than it has, with that one, as `with_denoiser` says."""
        saved = load_codec(folder)
        made = saved.network
        if settings.denoiser is not None and made.settings.denoiser != settings.denoiser:
            made = with_denoiser(made, settings.denoiser, self.crops.for_statistics(64), trained=False)
        if made.settings != settings:
            raise UserError(f"the codec at {folder} has the shape {made.settings}, not that of `network`, {settings}")
        return made.requires_grad_(True).train()

    def _judge(self, settings: CodecJudge, made: CodecNetwork) -> Judge | None:
        if not settings.weight:
            return None
        if made.denoiser is None or made.denoiser.settings.kind != "transformer":
            raise UserError("judge.weight needs a codec with a pre-trained denoiser; name one by init_from")
        transformer = copy.deepcopy(made.denoiser.transformer)
        judge = judge_of(settings, LatentBackbone(transformer, made.denoiser.settings.conditional))
        judge.add_networks(self.networks, self.optimizers)
        return judge

    def prepare(self, device: torch.device | str) -> None:
        super().prepare(device)
        if self.judge is not None:
            side = self.crop // 16
            self.judge.prepare({CODE: torch.zeros(1, self.settings.channels, side, side)}, self.device)

    def __len__(self) -> int:
        return len(self.crops.records)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        images = self.crops.images(records, random).to(self.device)
        return {"images": images, "quality": random_qualities(random, self.low_qualities).to(self.device)}

    def phases(self, step: int) -> list[Phase]:
        first = Phase("codec", "codec", self._loss)
        return [first] if self.judge is None else [first, *self.judge.fake_phases(_unused, self.networks)]

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
        seen = error
        if self.loss.masking:
            seen = (smoothness(x) ** self.loss.masking * (y - x).square().mean(1, keepdim=True)).mean((1, 2, 3))
        total = bpp + self.loss.error * weights[:, 0] * seen
        logs = {"bpp": bpp, "z_bpp": z_bpp, "error": error, "psnr_db": -10 * error.log10()}
        if self.perceptual is not None:
            place = random.uniform("window", (2,))
            distance = self.perceptual(*(cut(images, place, self.loss.perceptual_side) for images in (x, y)))
            total = total + self.loss.perceptual * weights[:, 1] * distance
            logs["perceptual"] = distance
        loss = (weights[:, 2] * total).mean()
        found = {name: value.detach().mean() for name, value in logs.items()}
        if self.reference is not None or self.judge is not None:
            w = self._normalised(made.latent)
        if self.reference is not None:
            found["alignment"] = distance = cosine_alignment(w, self._original(x), self.loss.margin)
            loss = loss + self.loss.alignment * distance
        if self.judge is not None:
            batch["cond"], carry["x0"] = {CODE: made.y.detach()}, w.detach()
            push, more = self.judge.loss(w, batch["cond"], random, residual="vsd", weight=self.judging.of_time)
            loss = loss + self.judging.weight * push
            found |= {f"judge_{name}": value for name, value in more.items()}
        return loss, {name: value.detach() for name, value in found.items()}

    def _normalised(self, latent: Tensor) -> Tensor:
        """The latent on the scale of the denoiser, or as it is if there is none."""
        denoiser = unwrap(self.networks["codec"]).denoiser
        return latent.float() if denoiser is None else denoiser.normalised(latent.float())  # type: ignore[no-any-return]

    @torch.no_grad()
    def _original(self, x: Tensor) -> Tensor:
        """The latent of images as the first codec has it when nothing is rounded."""
        assert self.reference is not None
        best = torch.full((len(x),), float(QUALITIES), device=x.device)
        return self._normalised(self.reference.latent(self.reference.encode(x), best))

    @torch.no_grad()
    def validate(self) -> Validation:
        """The kept photographs, or else the first one, at three qualities: bits a pixel, PSNR, perceptual distance."""
        network: CodecNetwork = unwrap(self.networks["codec"])
        numbers: dict[str, float] = {}
        shown = []
        for quality in (10, 50, 90):
            found = []
            for x in self.crops.shown(MULTIPLE):
                x = x.to(self.device)
                y, bits = network.reconstruct(x, torch.tensor([float(quality)], device=self.device))
                distance = 0.0 if self.perceptual is None else float(self.perceptual(x, y.clamp(0, 1)))
                area = x.shape[-2] * x.shape[-1]
                found.append((bits / area, float(-10 * (y.clamp(0, 1) - x).square().mean().log10()), distance))
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


def smoothness(images: Tensor, middle: float = 0.03, least: float = 3 / 255) -> Tensor:
    """middle / sqrt(variance + least^2) of the pixels around: above 1 where an image is smooth.

    Args:
        images: (B, 3, H, W) in [0, 1]; sides are multiples of 8, from 16.
        middle: the standard deviation at which it is about 1.
        least: added to the standard deviation.

    Returns:
        (B, 1, H, W).
    """
    mean, square = (F.avg_pool2d(x, 16, 8, 4, count_include_pad=False) for x in (images, images.square()))
    variance = (square - mean.square()).clamp_min(0).mean(1, keepdim=True)
    found = middle / (variance + least**2).sqrt()
    return F.interpolate(found, size=images.shape[-2:], mode="bilinear")


def cut(images: Tensor, places: Tensor, side: int) -> Tensor:
    """A square of each image, at places (B, 2) in [0, 1)."""
    span = images.shape[-1] - side + 1
    corners = (places * span).long().tolist()
    return torch.stack(
        [x[:, up : up + side, left : left + side] for x, (up, left) in zip(images, corners, strict=True)]
    )


def _unused(network: Any, random: SampleRandom, cond: Any, draw: str = "") -> Tensor:
    """The fake score has one update a step, on latents that were just made; it asks for no others."""
    raise AssertionError("the fake score asked for new samples")
