"""What methods share that train a text-to-image model of two times from data.

Pictures, captions, latents and the text encoder are those of `TextToImage`; the UNet is told two times, the path is
straight, and the product is sampled in any number of steps (`models.any_step_pipeline`). A method says its loss.

Notable:
- an average of the weights that is run within a step (a judge, an aim) is a network among the others, brought up to
  date before the losses of a step; checkpoints hold it, and a continuation is exact;
- gradients go through `networks["model"]`; passes without a graph go through the bare network, so that a data-parallel
  wrapper sees only what it has to synchronise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import FlowSchedule
from diffdistill.diffusion.any_step import TwoTimeDenoiser
from diffdistill.diffusion.vp_on_straight_path import VPOnStraightPath
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.models.any_step_pipeline import (
    AnyStepModel,
    export_stock_one_step,
    is_any_step,
    load_any_step,
    save_any_step,
)
from diffdistill.models.attention import set_attention
from diffdistill.models.ema import averaged_copy, follow
from diffdistill.models.export import halve
from diffdistill.models.families.stable_diffusion import stock_pipeline
from diffdistill.models.families.unet import check_plain_unet, sample_size
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.text import check_unmasked

from .base import FREE_ARGUMENTS, Batch, Loss, Method, OptimizerSettings, Phase, Validation, unwrap
from .content import digest, of_network, of_text
from .text_to_image import PREVIEW, TextToImage

PREVIEW_STEPS = (1, 8)


class AnyStep(Method):
    """A two-time UNet on the latents of a captioned image set.

    Args:
        source: settings of `TextToImage`: the data, and the sizes of the networks.
        learning_rate, betas, weight_decay: AdamW's.
        init_from: what to start from, with its text encoder and tokenizer: the folder of an any-step model (a
            flow-matching one, say), or a Stable-Diffusion-class teacher, folder or hub id, whose answers are at first
            this model's at s = t; None to start from nothing.
        average_decay: of the average that is run within a step; None for no such average.
        time_scale: the network is told time_scale * t.
        grid_shift: `FlowSchedule`'s shift, of the sampling grid; the shift in `source` is of pictures, in pixels.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
        stock_one_step: export one step as a stock pipeline too, in the folder `one_step`.

    Raises:
        UserError: an init_from that does not fit the autoencoder, the pictures or time_scale.
    """

    averaged = "model"
    free = {**FREE_ARGUMENTS, "stock_one_step": "what is exported beside the product"}
    name = "any_step"
    reach = 1.0
    reach_of_one_step = 1.0
    finest_steps: int | None = None
    eta = 0.0
    preview_guidance = 2.0  # of pictures of several steps; 1 where guidance is in the network already

    def __init__(
        self,
        source: dict[str, Any],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        init_from: str | None,
        average_decay: float | None,
        time_scale: int = 1000,
        grid_shift: float = 1.0,
        attention: str = "auto",
        half_export: bool = False,
        stock_one_step: bool = False,
    ) -> None:
        if average_decay is not None and not 0 <= average_decay < 1:
            raise UserError(f"the decay of an average is {average_decay}; it must be from 0 to below 1")
        if time_scale < 1 or not 0 < grid_shift < math.inf:
            raise UserError(
                f"time_scale is {time_scale}, the grid's shift {grid_shift}; they must be above 0 and finite"
            )
        start = None if init_from is None else _load_start(init_from, time_scale)  # before pictures are encoded
        self.source = TextToImage(**source)
        self.frozen = self.source.frozen
        made: Any = self.source.networks.pop("model")
        unet, text_encoder = made.inner, made.text_encoder
        self.content = dict(self.source.content)
        process = None
        if init_from is not None and start is not None:
            unet, pipeline, process = start
            text_encoder = self._take(init_from, unet, pipeline, process)
        set_attention(unet, attention, "cuda" if torch.cuda.is_available() else "cpu")
        self.schedule = FlowSchedule(time_scale, grid_shift)
        from diffdistill.models.two_times import TwoTimeUNet

        model = TwoTimeUNet(unet.to(memory_format=torch.channels_last), text_encoder, process, time_scale)
        self.networks = {"model": model}
        self.average_decay = average_decay
        if average_decay is not None:
            self.networks["average"] = averaged_copy(model)
        self.optimizers = {"model": OptimizerSettings(learning_rate, betas, weight_decay)}
        self.half_export, self.stock_one_step = half_export, stock_one_step

    def _take(self, source: str, unet: Any, pipeline: Any, process: VPOnStraightPath | None) -> Any:
        """The text encoder of what to start from; takes over the tokenizer."""
        text_encoder = pipeline.text_encoder
        found = sample_size(unet.config)
        wanted = tuple(self.source.latents.shape[2:])
        if found != wanted:
            raise UserError(f"init_from {source} makes latents of shape {found}; those of the pictures have {wanted}")
        if not _one_autoencoder(pipeline.vae, self.source.vae):
            raise UserError(f"init_from {source} has another autoencoder; set autoencoder to its vae folder")
        self.source.tokenizer = pipeline.tokenizer
        text = of_text(pipeline.tokenizer, text_encoder)
        start = digest(of_network(unet), text, str(process and process.settings))
        self.content = {**self.content, "init_from": start}
        for part in (unet, text_encoder):
            part.requires_grad_(True).train()
        return text_encoder

    def __len__(self) -> int:
        return len(self.source)

    def prepare(self, device: torch.device | str) -> None:
        super().prepare(device)
        self.source.prepare(device)

    def enable_gradient_checkpointing(self) -> None:
        unwrap(self.networks["model"]).inner.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        return self.source.batch(records, random)

    def begin_step(self, step: int) -> None:
        if self.average_decay is not None and step:  # before the first step the average is the model
            follow(unwrap(self.networks["average"]), unwrap(self.networks["model"]), self.average_decay, step)

    def phases(self, step: int) -> list[Phase]:
        return [Phase(self.name, "model", self._loss)]

    @abstractmethod
    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        """The method's loss of a micro-batch."""

    # ---- for losses -------------------------------------------------------------------------------------------

    @property
    def trained(self) -> TwoTimeDenoiser:
        """The network in training, as it is to be called with a graph."""
        return TwoTimeDenoiser(self.networks["model"], self.schedule)

    @property
    def live(self) -> TwoTimeDenoiser:
        """The same weights, for passes without a graph."""
        return TwoTimeDenoiser(unwrap(self.networks["model"]), self.schedule)

    @property
    def average(self) -> TwoTimeDenoiser:
        """The averaged weights, for passes without a graph."""
        return TwoTimeDenoiser(unwrap(self.networks["average"]), self.schedule)

    @property
    def null(self) -> Tensor:
        """Token ids of the empty caption, (1, L)."""
        return self.source.tokenize([""])

    def noise(self, random: SampleRandom, stream: str, x0: Tensor) -> Tensor:
        return random.normal(stream, x0.shape[1:]).contiguous(memory_format=torch.channels_last)

    # ---- product ----------------------------------------------------------------------------------------------

    def _product(self) -> AnyStepModel:
        model = unwrap(self.networks["model"])
        parts = stock_pipeline(model.inner, self.source.vae, model.text_encoder, self.source.tokenizer)
        told = (self.reach, self.reach_of_one_step, self.finest_steps)
        return AnyStepModel(parts, model, self.schedule, *told, self.eta)

    def validate(self) -> Validation:
        """16 captions, each at 1 step unguided and at 8 steps guided, noise the same every time."""
        product = self._product()
        cond = self.source.tokenize([f"{name}, noto" for name in PREVIEW])
        noise = SampleRandom(0, range(len(PREVIEW)), self.source.device).normal("preview", product.latent_shape)
        guidance = self.preview_guidance
        rows = [
            product.latents.images(product.sample(cond, self.null, noise, steps, 1.0 if steps == 1 else guidance))
            for steps in PREVIEW_STEPS
        ]
        return Validation(torch.stack(rows, 1).flatten(0, 1))

    def export(self, folder: Path) -> None:
        product = self._product()
        save_any_step(product, folder)
        if self.half_export:
            halve(folder)
        if self.stock_one_step:
            export_stock_one_step(product, folder / "one_step")
            if self.half_export:
                halve(folder / "one_step")


def _one_autoencoder(one: Any, other: Any) -> bool:
    """Whether two are the same, but for what halving a copy's precision rounds away."""
    a, b = one.state_dict(), other.state_dict()
    shapes = [{name: value.shape for name, value in weights.items()} for weights in (a, b)]
    if shapes[0] != shapes[1] or one.config.scaling_factor != other.config.scaling_factor:
        return False
    return all(torch.allclose(value.float(), b[name].float(), rtol=2e-3, atol=1e-6) for name, value in a.items())


def _load_start(source: str, time_scale: int) -> tuple[Any, Any, VPOnStraightPath | None]:
    """The UNet to start from, its pipeline, and the process that the UNet knows where that is another one."""
    if not is_any_step(source):
        teacher = load_checked_teacher(source)
        unet = check_plain_unet(teacher.backbone.inner, f"init_from {source}: a second time")
        check_unmasked(teacher.pipeline.text_encoder, f"init_from {source}")
        try:
            return unet, teacher.pipeline, VPOnStraightPath(teacher.scheduler_config)
        except ValueError as error:
            raise UserError(f"init_from {source}: {error}") from error
    model = load_any_step(source)
    check_unmasked(model.pipeline.text_encoder, f"init_from {source}")
    if (told := model.schedule.num_train_timesteps) != time_scale:
        raise UserError(f"init_from {source} is told {told} t; here it is {time_scale} t")
    return model.network.inner, model.pipeline, model.network.process
