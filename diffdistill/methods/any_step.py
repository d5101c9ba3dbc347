"""The base of methods that train a text-to-image model of two times from data.

    images --autoencoder--> x0 --straight path--> x_t --UNet, conditioned on t, s and the caption--> a step from t to s

Images, captions and latents are a `CaptionedLatents`. The network is a UNet of two times with its text encoder. The
product is sampled in any number of steps (`models.any_step_pipeline`). Each method adds its loss.

Notable:
- if a loss calls an average of the weights (to judge samples, or to make targets), this average is one of the networks.
  It is updated before the losses of a step. Checkpoints hold it, so a continuation is exact;
- gradients go through `networks["model"]`. Passes without a graph go through the bare network, so that a data-parallel
  wrapper sees only the passes that it has to synchronise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.captioned import CaptionedData, load_captioned
from diffdistill.diffusion import FlowSchedule, TwoTimeDenoiser, VPOnStraightPath
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
from diffdistill.models.families.unet import check_plain_unet
from diffdistill.models.latents import LatentSpace, load_autoencoder
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.text import check_unmasked, report_cut

from .base import Batch, Method, OptimizerSettings, Validation, unwrap
from .captioned_latents import Augmentation, CaptionedLatents
from .content import digest, of_data, of_network, of_text
from .new_network import NetworkSettings, new_text_encoder, new_tokenizer, new_unet, self_conditioned

PREVIEW_STEPS = (1, 8)


@dataclass(frozen=True)
class AnyStepExport:
    """How the product of an any-step method is stored.

    Args:
        half: store the exported weights of the network and the autoencoder as float16.
        stock_one_step: export one step as a stock pipeline too, in the folder `one_step`.
    """

    half: bool = False
    stock_one_step: bool = False


@dataclass(frozen=True)
class Sampling:
    """How an any-step model is sampled: the earlier time s that the network is conditioned on, and added noise.

    Args:
        target_fraction: where s lies in a step, from 0 (s = t) to 1 (the end of the step).
        one_step_target_fraction: the same for sampling in a single step.
        finest_steps: with more steps than this number, s stays about as far from t as with this number; null for no
            limit.
        eta: noise that is added while sampling, as a fraction of the ancestral sampler's, from 0 to 1.

    Raises:
        UserError: a number is out of its range.
    """

    target_fraction: float = 1.0
    one_step_target_fraction: float = 1.0
    finest_steps: int | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        for name in ("target_fraction", "one_step_target_fraction", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a fraction, from 0 to 1")
        if self.finest_steps is not None and self.finest_steps < 2:
            raise UserError(f"finest_steps is {self.finest_steps}; it must be 2 or more, or null")


def at_the_start(sampling: Sampling) -> Sampling:
    """The settings with s = t in every step, for a network that was not trained with other times yet."""
    return replace(sampling, target_fraction=0.0, one_step_target_fraction=0.0, finest_steps=None)


class AnyStep(Method):
    """A two-time UNet on the latents of captioned images.

    Args:
        data: captioned images.
        network: the autoencoder, and the sizes or the start of the networks that are trained. With `network.init_from`
            the model starts from an any-step model (such as one trained by flow matching) or from a teacher. At s = t
            it then predicts at first what the teacher predicts. Tokenizer and text encoder are taken from there too.
        augmentation: how images and captions are varied.
        optimizer: the optimiser of UNet and text encoder.
        export: how the product is stored.
        ema_decay: decay of the averaged network that a loss calls; None for no such network.
        time_scale: the network takes time_scale * t.
        grid_shift: the shift of `FlowSchedule`, for the sampling grid.
        sampling: returns how the product is sampled at this point of the run.
        preview_guidance: guidance of validation images of several steps; 1 if the network itself is guided.

    Raises:
        UserError: a setting is out of its range, or `network.init_from` does not fit the autoencoder, the images or
            `time_scale`.
    """

    averaged = "model"
    free = {
        "network.attention": "which kernel computes attention; equal up to rounding",
        "export.half": "how the product is stored",
        "export.stock_one_step": "what is exported beside the product",
    }

    def __init__(
        self,
        data: CaptionedData,
        network: NetworkSettings,
        augmentation: Augmentation,
        optimizer: OptimizerSettings,
        export: AnyStepExport,
        *,
        ema_decay: float | None = None,
        time_scale: int = 1000,
        grid_shift: float = 1.0,
        sampling: Callable[[], Sampling] = Sampling,
        preview_guidance: float = 2.0,
    ) -> None:
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay is {ema_decay}; it must be from 0 to below 1")
        if time_scale < 1 or not 0 < grid_shift < math.inf:
            raise UserError(
                f"time_scale is {time_scale} and the grid's shift {grid_shift}; they must be above 0 and finite"
            )
        if augmentation.conditioned:
            raise UserError("augmentation.conditioned is for LatentDiffusion; a network of two times cannot be told")
        start = None if network.init_from is None else _load_start(network.init_from, time_scale)
        autoencoder, images = load_autoencoder(network.autoencoder), load_captioned(data)
        space, size = LatentSpace(autoencoder), (images.images.shape[-2], images.images.shape[-1])
        self.content = {"network.autoencoder": of_network(autoencoder), **of_data(data, images)}
        if start is None:
            tokenizer, process = new_tokenizer(images), None
            unet, text_encoder = new_unet(network, space, size), new_text_encoder(network, tokenizer)
        else:
            start.check(space, size)
            unet, text_encoder, tokenizer, process = start.network, start.text_encoder, start.tokenizer, start.process
            unet = self_conditioned(unet, network)
            self.content["network.init_from"] = start.digest()
            for part in (unet, text_encoder):
                part.requires_grad_(True).train()
        report_cut(tokenizer, images.captions)
        self.source = CaptionedLatents(images, space, tokenizer, augmentation)
        set_attention(unet, network.attention, "cuda" if torch.cuda.is_available() else "cpu")
        self.schedule = FlowSchedule(time_scale, grid_shift)
        from diffdistill.models.two_times import TwoTimeUNet

        model = TwoTimeUNet(unet.to(memory_format=torch.channels_last), text_encoder, process, time_scale)
        self.networks = {"model": model}
        self.ema_decay = ema_decay
        if ema_decay is not None:
            self.networks["average"] = averaged_copy(model)
        self.optimizers = {"model": optimizer}
        self.frozen = {"autoencoder": autoencoder}
        self.export_settings = export
        self.sampling, self.preview_guidance = sampling, preview_guidance

    def __len__(self) -> int:
        return len(self.source)

    def prepare(self, device: torch.device | str) -> None:
        """Compute the latents on the device, or read them from the cache."""
        super().prepare(device)
        self.source.prepare(self.device)

    def enable_gradient_checkpointing(self) -> None:
        unwrap(self.networks["model"]).inner.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        return self.source.batch(records, random)

    def begin_step(self, step: int) -> None:
        """Update the average."""
        if self.ema_decay is not None and step > 0:
            follow(unwrap(self.networks["average"]), unwrap(self.networks["model"]), self.ema_decay, step)

    # ---- for losses -------------------------------------------------------------------------------------------

    @property
    def trained(self) -> TwoTimeDenoiser:
        """The network in training, for passes with a graph."""
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
        """Noise of unit variance and of x0's shape (B, C, h, w), from a stream of the batch's random numbers."""
        return random.normal(stream, x0.shape[1:]).contiguous(memory_format=torch.channels_last)

    # ---- product ----------------------------------------------------------------------------------------------

    def product(self) -> AnyStepModel:
        """The model with its present weights and the settings of sampling."""
        from diffdistill.models.families.stable_diffusion import stock_pipeline

        model = unwrap(self.networks["model"])
        parts = stock_pipeline(model.inner, self.source.space.autoencoder, model.text_encoder, self.source.tokenizer)
        s = self.sampling()
        return AnyStepModel(
            parts, model, self.schedule, s.target_fraction, s.one_step_target_fraction, s.finest_steps, s.eta
        )

    def validate(self) -> Validation:
        """Images of 16 captions, each in 1 step unguided and in 8 steps guided, always from the same noise."""
        product, captions = self.product(), self.source.preview_captions()
        if self.source.images.styles is not None:
            captions = [f"{name}, {self.source.images.styles[0]}" for name in captions]
        cond = self.source.tokenize(captions)
        noise = SampleRandom(0, range(len(captions)), self.device).normal("preview", product.latent_shape)
        guidance = self.preview_guidance
        rows = [
            self.source.space.images(product.sample(cond, self.null, noise, steps, 1.0 if steps == 1 else guidance))
            for steps in PREVIEW_STEPS
        ]
        return Validation(torch.stack(rows, 1).flatten(0, 1))

    def export(self, folder: Path) -> None:
        product, settings = self.product(), self.export_settings
        save_any_step(product, folder)
        if settings.half:
            halve(folder)
        if settings.stock_one_step:
            export_stock_one_step(product, folder / "one_step")
            if settings.half:
                halve(folder / "one_step")


@dataclass(frozen=True)
class _Start:
    """The networks that a model starts from, and the process of its UNet if that is not the straight path."""

    source: str
    network: Any
    autoencoder: Any
    text_encoder: Any
    tokenizer: Any
    latent_shape: tuple[int, int, int]
    process: VPOnStraightPath | None

    def check(self, space: LatentSpace, size: tuple[int, int]) -> None:
        """Raise UserError for latents of another shape, another autoencoder, or a text encoder that takes a mask."""
        check_unmasked(self.text_encoder, f"network.init_from {self.source}")
        if (wanted := space.shape(*size)) != self.latent_shape:
            raise UserError(
                f"network.init_from {self.source} makes latents of shape {self.latent_shape}, but those of the images "
                f"have shape {wanted}"
            )
        if not _one_autoencoder(self.autoencoder, space.autoencoder):
            raise UserError(
                f"network.init_from {self.source} has another autoencoder; set network.autoencoder to its vae folder"
            )

    def digest(self) -> str:
        text, settings = of_text(self.tokenizer, self.text_encoder), str(self.process and self.process.settings)
        return digest(of_network(self.network), text, settings)


def _load_start(source: str, time_scale: int) -> _Start:
    """Load an any-step model or a teacher as the start of a model.

    Raises:
        UserError: neither is there, the time_scale is another one, or a model cannot start from this teacher.
    """
    if is_any_step(source):
        model = load_any_step(source)
        if (scale := model.schedule.num_train_timesteps) != time_scale:
            raise UserError(f"network.init_from {source} has time_scale {scale}, but here it is {time_scale}")
        p, unet, process = model.pipeline, model.network.inner, model.network.process
        return _Start(source, unet, p.vae, p.text_encoder, p.tokenizer, model.latent_shape, process)
    teacher = load_checked_teacher(source)
    check_plain_unet(teacher.backbone.inner, f"network.init_from {source}: a second time")
    try:
        process = VPOnStraightPath(teacher.scheduler_config)
    except ValueError as error:
        raise UserError(f"network.init_from {source}: {error}") from error
    p, unet = teacher.pipeline, teacher.backbone.inner
    autoencoder = teacher.latents.autoencoder
    return _Start(source, unet, autoencoder, p.text_encoder, p.tokenizer, teacher.latent_shape, process)


def _one_autoencoder(one: Any, other: Any) -> bool:
    """Whether two autoencoders are the same, up to the rounding of a copy in half precision."""
    a, b = one.state_dict(), other.state_dict()
    shapes = [{name: value.shape for name, value in weights.items()} for weights in (a, b)]
    if shapes[0] != shapes[1] or one.config.scaling_factor != other.config.scaling_factor:
        return False
    return all(torch.allclose(value.float(), b[name].float(), rtol=2e-3, atol=1e-6) for name, value in a.items())
