"""Pre-training of the codec's denoiser: a multi-step flow-matching model of the encoder's code.

    photograph --frozen encoder, nothing rounded--> y --normalise--> w
    w_t = (1 - t) w + t eps --> transformer(w_t, t, condition) --> eps - w

Notable:
- with `condition: code` the model is conditioned on the rounded code at a random quality and on its scales, as
  when it runs in the codec (compression-oriented pre-training, as in CoD, arXiv 2511.18706); with `none` it is a model
  of photographs' codes alone (generation-oriented);
- the product is the codec with the denoiser in it, whose step is zero, so that it decodes as before. `ImageCodec`
  adapts it to one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.codec.denoiser import DenoisingTransformer
from diffdistill.codec.latent_codec import Coded
from diffdistill.codec.network import CodecNetwork
from diffdistill.codec.one_step import DenoiserSettings, OneStep, of_indexes
from diffdistill.codec.saved import load_codec, save_codec
from diffdistill.data.photographs import PhotographData
from diffdistill.diffusion import Condition, Denoiser, FlowSchedule
from diffdistill.diffusion.samplers import euler
from diffdistill.distill import SampleRandom, denoising_loss, logit_normal_times
from diffdistill.errors import UserError

from .base import Batch, Loss, Method, OptimizerSettings, Phase, Validation, unwrap
from .codec_crops import Crops, check_crop, random_qualities
from .codec_judge import CONDITION, LatentBackbone

STEPS = 20  # of the samples that validation shows
SHOWN_QUALITY = 10.0


class CodecFlow(Method):
    """Train a denoiser for a codec that has none.

    Args:
        data: where the photographs are.
        codec: folder of the codec.
        denoiser: the shape of the denoiser; its kind must be "transformer".
        condition: "code", or "none".
        optimizer: the optimiser.
        crop: side of the training crops in pixels, a multiple of 64.

    Raises:
        UserError: a setting is out of its range, the codec has a denoiser, or there are no photographs.
    """

    averaged = "denoiser"

    def __init__(
        self,
        data: PhotographData,
        codec: str,
        denoiser: DenoiserSettings = DenoiserSettings(),
        condition: Literal["code", "none"] = "code",
        optimizer: OptimizerSettings = OptimizerSettings(1e-3, (0.9, 0.99)),
        crop: int = 256,
    ) -> None:
        check_crop(crop)
        saved = load_codec(codec)
        if denoiser.kind != "transformer" or denoiser.step not in ("element", "channel"):
            raise UserError(
                f"denoiser.kind is {denoiser.kind!r} and step {denoiser.step!r}; flow matching trains a transformer "
                "whose step can be zero: 'element' or 'channel'. `ImageCodec` may take another step"
            )
        if condition not in ("code", "none"):
            raise UserError(f"condition is {condition!r}; it must be 'code' or 'none'")
        if saved.network.denoiser is not None:
            raise UserError(f"the codec at {codec} has a denoiser already")
        self.crops, self.condition = Crops(data, crop), condition
        self.content = {"data.source": self.crops.digest, "codec": saved.fingerprint}
        self.codec = with_denoiser(saved.network, denoiser, self.crops.for_statistics(64))
        assert self.codec.denoiser is not None
        self.codec.denoiser.without_a_step()
        transformer: DenoisingTransformer = self.codec.denoiser.transformer
        if condition == "none":  # it will see one condition token alone, so nothing trains this
            torch.nn.init.zeros_(transformer.pool.weight)
        self.networks = {"denoiser": LatentBackbone(transformer.requires_grad_(True).train(), condition == "code")}
        self.optimizers = {"denoiser": optimizer}
        self.frozen = {"codec": self.codec}
        self.schedule = FlowSchedule()

    def __len__(self) -> int:
        return len(self.crops.records)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        quality = random_qualities(random, 1.0).to(self.device)
        with torch.no_grad():
            return self._of(self.crops.images(records, random).to(self.device), quality)

    def _of(self, images: Tensor, quality: Tensor) -> Batch:
        """The clean code of images, and its condition."""
        y = self.codec.encode(images)
        coded = self.codec.latent_codec.rounded(y, quality)
        return {"w": normalised(self.codec, y), "cond": {CONDITION: condition_of(self.codec, coded)}, "coded": coded}

    def phases(self, step: int) -> list[Phase]:
        return [Phase("denoiser", "denoiser", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        w: Tensor = batch["w"]
        t = logit_normal_times(random.normal("time", ()))
        loss = denoising_loss(self._denoiser(), w, t, random.normal("noise", w.shape[1:]), batch["cond"], "flow")
        return loss, {"flow": loss.detach()}

    def _denoiser(self) -> Denoiser:
        return Denoiser(self.networks["denoiser"], self.schedule, "flow")

    @torch.no_grad()
    def validate(self) -> Validation:
        """The kept photographs at quality 10: the original, decoded, and decoded from a code sampled in 20 steps."""
        shown, errors = [], []
        for number, x in enumerate(self.crops.shown(64)):
            found = self._of(x.to(self.device), torch.tensor([SHOWN_QUALITY], device=self.device))
            coded, random = found["coded"], SampleRandom(0, [number], self.device)
            noise = random.normal("noise", found["w"].shape[1:])
            sampled = sample_code(self._denoiser(), noise, found["cond"])
            assert self.codec.denoiser is not None
            quality = torch.tensor([SHOWN_QUALITY], device=self.device)
            plain = self.codec.decode_clean(coded.y, quality)
            again = self.codec.decode_clean(self.codec.denoiser.restored(sampled), quality)
            shown += [image[0].float().clamp(0, 1).cpu() for image in (x, plain, again)]
            times = torch.tensor([0.5], device=self.device)
            errors.append(float(denoising_loss(self._denoiser(), found["w"], times, noise, found["cond"], "flow")))
        side = min(min(image.shape[1:]) for image in shown)
        grid = torch.stack([image[:, :side, :side] for image in shown])
        return Validation(grid, {"flow_error_at_half": sum(errors) / len(errors)})

    def export(self, folder: Path) -> None:
        backbone: LatentBackbone = unwrap(self.networks["denoiser"])
        assert self.codec.denoiser is not None
        self.codec.denoiser.transformer = backbone.inner
        save_codec(self.codec, folder)


def with_denoiser(network: CodecNetwork, settings: DenoiserSettings, images: Tensor) -> CodecNetwork:
    """A codec with a new denoiser, or with a new step around the transformer that it has.

    Args:
        network: the codec.
        settings: the shape of the denoiser. If the codec has one, only `step` and `conditional` may be others.
        images: photographs (B, 3, H, W) in [0, 1], by whose codes a new denoiser normalises.

    Raises:
        UserError: the codec's transformer has another shape.
    """
    own, before = network.settings, network.settings.denoiser
    if before is not None and dataclasses.replace(before, step=settings.step, conditional=settings.conditional) != (
        settings
    ):
        raise UserError(f"the codec has a denoiser of the shape {before}, not {settings}")
    made = CodecNetwork(
        dataclasses.replace(own, denoiser=settings), network.lapped.channels.tolist(), torch.ones(own.channels)
    )
    kept = ("denoiser.transformer.", "denoiser.mean", "denoiser.rms")
    state = network.state_dict()
    found = made.load_state_dict(
        {name: value for name, value in state.items() if not name.startswith("denoiser.") or name.startswith(kept)},
        strict=False,
    )
    assert not found.unexpected_keys and all(name.startswith("denoiser.") for name in found.missing_keys)
    made = made.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert isinstance(made.denoiser, OneStep)
    if before is None:
        with torch.no_grad():
            made.denoiser.calibrate(torch.cat([made.encode(part) for part in images.split(8)]).float())
    return made


def normalised(network: CodecNetwork, y: Tensor) -> Tensor:
    """Coefficients (B, C, h, w) on the scale of the denoiser, in float32; as they are if there is none."""
    return y.float() if network.denoiser is None else network.denoiser.normalised(y.float())  # type: ignore[no-any-return]


def condition_of(network: CodecNetwork, coded: Coded) -> Tensor:
    """The condition of the transformer: the rounded code, normalised, and its scales, (B, 2 C, h, w)."""
    return torch.cat([normalised(network, coded.y), of_indexes(coded.indexes)], 1)


def sample_code(denoiser: Denoiser, noise: Tensor, cond: Condition, steps: int = STEPS) -> Tensor:
    """w (B, C, h, w), sampled from noise by Euler's method."""

    def predict(x: Tensor, t: Tensor) -> Any:
        return denoiser(x, t, cond)

    return euler(predict, noise, denoiser.schedule, steps)
