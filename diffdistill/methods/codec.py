"""The image codec: rate, distortion and perceptual distance, for all qualities at once.

    image --encoder--> code --rounded--> bits (rate)
                            `--denoiser, if there is one--> code --decoder--> image: squared error, perceptual distance
                                                             `-- alignment with the encoder's code, a judge

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
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffdistill.codec.alignments import cosine_alignment
from diffdistill.codec.lapped import channels_by_variance
from diffdistill.codec.network import CodecNetwork, CodecSettings
from diffdistill.codec.saved import load_codec, save_codec
from diffdistill.data.photographs import PhotographData
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError

from .base import Batch, Loss, Method, OptimizerSettings, ParameterGroup, Phase, Validation, unwrap
from .codec_crops import Crops, check_crop, random_qualities
from .codec_flow import condition_of, normalised, with_denoiser
from .codec_judge import CONDITION, CodecJudge, LatentBackbone, judge_of
from .codec_rate_distortion import CodecLoss, RateDistortion
from .judge import Judge


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
        judge: a score-distillation term on the denoised code. It needs `init_from` with a denoiser from `CodecFlow`.

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
        check_crop(crop)
        if not 0 < low_qualities <= 10:
            raise UserError(f"low_qualities is {low_qualities}; it must be in (0, 10]")
        if trained not in ("all", "decoder"):
            raise UserError(f"trained is {trained!r}; it must be 'all' or 'decoder'")
        if init_from is None and (trained != "all" or loss.alignment or judge.weight):
            raise UserError("trained, loss.alignment and judge need a trained codec; name one by init_from")
        self.loss, self.crop, self.low_qualities, self.settings = loss, crop, low_qualities, network
        self.trade = RateDistortion(loss, crop)
        self.crops = Crops(data, crop)
        self.content = content = {"data.source": self.crops.digest}
        self.frozen = frozen = dict[str, nn.Module]()
        made = self._new(network) if init_from is None else self._from(init_from, network)
        if init_from is not None:
            content["init_from"] = load_codec(init_from).fingerprint
        order = bytes(str(made.lapped.channels.tolist()), "ascii")  # found anew by a continuation, from statistics
        content["channels of the transform"] = hashlib.sha256(order).hexdigest()[:16]
        self.networks = {"codec": made}
        self.optimizers = {"codec": optimizer}
        if self.trade.perceptual is not None:
            frozen["perceptual"] = self.trade.perceptual
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
            made = with_denoiser(made, settings.denoiser, self.crops.for_statistics(64))
        if made.settings != settings:
            raise UserError(f"the codec at {folder} has the shape {made.settings}, not that of `network`, {settings}")
        if made.denoiser is not None and made.denoiser.settings.kind == "transformer":
            made.denoiser.with_a_step()
        return made.requires_grad_(True).train()

    def _judge(self, settings: CodecJudge, made: CodecNetwork) -> Judge | None:
        if not settings.weight:
            return None
        if made.denoiser is None or made.denoiser.settings.kind != "transformer":
            raise UserError("judge.weight needs a codec with a pre-trained denoiser; name one by init_from")
        transformer = copy.deepcopy(made.denoiser.transformer)
        if not transformer.out.weight.abs().max() > 0:
            raise UserError("judge.weight: the denoiser is new and knows nothing; pre-train it by CodecFlow")
        judge = judge_of(settings, LatentBackbone(transformer, made.denoiser.settings.conditional))
        judge.add_networks(self.networks, self.optimizers)
        return judge

    def prepare(self, device: torch.device | str) -> None:
        super().prepare(device)
        if self.judge is not None:
            side = self.crop // 16
            self.judge.prepare({CONDITION: torch.zeros(1, 2 * self.settings.channels, side, side)}, self.device)

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
        noise = random.uniform("rounding", (self.settings.channels, side, side)).float() - 0.5
        z_noise = random.uniform("z_noise", (self.settings.hyper, side // 4, side // 4)).float() - 0.5
        made = self.networks["codec"](x, quality, noise, z_noise)
        loss, logs = self.trade(x, made, quality, random)
        found = {name: value.detach().mean() for name, value in logs.items()}
        network: CodecNetwork = unwrap(self.networks["codec"])
        if self.reference is not None or self.judge is not None:
            w = normalised(network, made.clean)
        if self.reference is not None:
            with torch.no_grad():
                target = normalised(network, self.reference.encode(x))
            distance = cosine_alignment(w, target, self.loss.margin)
            loss = loss + self.trade.aligned(distance, quality)
            found["alignment"] = distance.mean()
        if self.judge is not None:
            batch["cond"], carry["x0"] = {CONDITION: condition_of(network, made.coded).detach()}, w.detach()
            push, more = self.judge.loss(w, batch["cond"], random, residual="vsd", weight=self.judging.of_time)
            loss = loss + self.judging.weight * push
            found |= {f"judge_{name}": value for name, value in more.items()}
        return loss, {name: value.detach() for name, value in found.items()}

    def validate(self) -> Validation:
        return self.trade.show(unwrap(self.networks["codec"]), self.crops, self.device)

    def export(self, folder: Path) -> None:
        save_codec(unwrap(self.networks["codec"]), folder)


def _unused(network: Any, random: SampleRandom, cond: Any, draw: str = "") -> Tensor:
    """The fake score has one update a step, on latents that were just made; it asks for no others."""
    raise AssertionError("the fake score asked for new samples")
