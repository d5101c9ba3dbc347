"""Latent diffusion: a text-conditional teacher, trained on captioned images.

    images --autoencoder--> x0 --noise--> x_t --UNet, conditioned on the caption--> v, squared error

The product is a stock Stable Diffusion pipeline: a UNet2DConditionModel on the latents of an AutoencoderKL, a
CLIPTextModel that is trained together with the UNet, and a DDIMScheduler with trailing spacing. The teacher that ships
with the project is trained in this way.

Notable:
- the network predicts v, on a cosine schedule whose last time is almost pure noise;
- the network may be conditioned on its own features (`models.self_conditioning`), and a contrastive term may be added
  (`methods.self_distillation`), as in DDAE++.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffdistill.data.captioned import CaptionedData, load_captioned
from diffdistill.diffusion import Denoiser, GuidedDenoiser, VPSchedule, ddim
from diffdistill.distill import SampleRandom, denoising_loss
from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.export import halve
from diffdistill.models.families.unet import TextConditionedUNet, check_plain_unet
from diffdistill.models.latents import LatentSpace, load_autoencoder
from diffdistill.models.stock_check import load_checked_teacher
from diffdistill.models.text import check_unmasked, report_cut

from .base import Batch, Loss, Method, OptimizerSettings, Phase, Validation, unwrap
from .captioned_latents import Augmentation, CaptionedLatents
from .content import digest, of_data, of_network, of_text
from .new_network import NetworkSettings, new_text_encoder, new_tokenizer, new_unet, self_conditioned
from .self_distillation import Contrast, SelfDistillation, changes_of

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,  # the stock pipeline requires it; trailing spacing does not use it
}


class LatentDiffusion(Method):
    """Train a text-conditional latent diffusion model on captioned images.

    Args:
        data: captioned images.
        network: the autoencoder, and the sizes or the start of the networks that are trained.
        augmentation: how images and captions are varied.
        optimizer: the optimiser of UNet and text encoder.
        self_distillation: a contrastive term, as in DDAE++; by default there is none.

    Raises:
        UserError: `network.init_from` was trained in another way, or does not fit the autoencoder; the contrastive term
            has one variant of each image; or the network lacks a tap.
    """

    averaged = "model"
    free = {"network.attention": "which kernel computes attention; equal up to rounding"}

    def __init__(
        self,
        data: CaptionedData = CaptionedData(),
        network: NetworkSettings = NetworkSettings(),
        augmentation: Augmentation = Augmentation(),
        optimizer: OptimizerSettings = OptimizerSettings(1e-3, (0.9, 0.99), 1e-3),
        self_distillation: SelfDistillation = SelfDistillation(),
    ) -> None:
        autoencoder, images = load_autoencoder(network.autoencoder), load_captioned(data)
        space, size = LatentSpace(autoencoder), tuple(images.images.shape[-2:])
        self.schedule = VPSchedule.from_config(SCHEDULER)
        self.content = {"network.autoencoder": of_network(autoencoder), **of_data(data, images)}
        if network.init_from is None:
            self.tokenizer = new_tokenizer(images)
            unet = new_unet(network, space, (size[0], size[1]))
            text_encoder = new_text_encoder(network, self.tokenizer)
        else:
            unet, text_encoder, self.tokenizer = _start(network.init_from, space)
            start = digest(of_network(unet), of_text(self.tokenizer, text_encoder))
            self.content["network.init_from"] = start
            unet = self_conditioned(unet, network).requires_grad_(True)
        set_attention(unet, network.attention, "cuda" if torch.cuda.is_available() else "cpu")
        report_cut(self.tokenizer, images.captions)
        self.source = CaptionedLatents(images, space, self.tokenizer, augmentation)
        self.conditioned = augmentation.conditioned
        model = TextConditionedUNet(unet.to(memory_format=torch.channels_last), text_encoder, self.conditioned)
        self.networks: dict[str, Any] = {"model": model}
        self.optimizers = {"model": optimizer}
        self.contrast: Contrast | None = None
        if self_distillation.weight > 0:
            if self.source.variants < 2:
                raise UserError(
                    "self_distillation needs two variants of an image; set augmentation.shift or mirror, and variants "
                    "to 2 or more"
                )
            try:
                self.schedule.timestep(torch.zeros(1), 0.0, self_distillation.t_max)
            except ValueError as error:
                raise UserError(f"self_distillation.t_max is {self_distillation.t_max}: {error}") from error
            self.contrast = Contrast(self_distillation, model, self.source.tokenize([""]))
            self.networks |= self.contrast.networks
            self.optimizers["heads"] = replace(optimizer, groups=())
        self.frozen = {"autoencoder": autoencoder}

    def __len__(self) -> int:
        return len(self.source)

    def prepare(self, device: torch.device | str) -> None:
        """Compute the latents on the device, or read them from the cache."""
        super().prepare(device)
        self.source.prepare(self.device)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        return self.source.batch(records, random, pairs=self.contrast is not None)

    def begin_step(self, step: int) -> None:
        """Update the averages of the contrastive term."""
        if self.contrast is not None:
            self.contrast.begin_step(step, self.networks)

    def phases(self, step: int) -> list[Phase]:
        if self.contrast is None:
            return [Phase("teacher", "model", self._loss)]
        return [Phase("teacher", ("model", "heads"), self._loss, whole_batch=True)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0 = batch["x0"]
        t = self.schedule.timestep(random.uniform("time"), 0.0, 1.0)
        eps = random.normal("noise", x0.shape[1:]).contiguous(memory_format=torch.channels_last)
        change, other_change = changes_of(batch, self.conditioned)
        model, contrast = self.networks["model"], self.contrast
        view = None if contrast is None else contrast.view(x0, change, self.schedule, random, "query")
        found: list[Any] = []

        def network(x: Any, time: Any, cond: Any) -> Any:
            if contrast is None:
                return model(x, time, cond, change)
            value, features = model(x, time, cond, change, view, contrast.tap)
            found.append(features)
            return value

        loss = denoising_loss(Denoiser(network, self.schedule, "v"), x0, t, eps, batch["ids"], "v")
        if contrast is None:
            return loss, {}
        other = contrast.view(batch["other"], other_change, self.schedule, random, "key")
        term = contrast.loss(found[0], contrast.keys(other, self.networks), random, self.networks)
        logs = {"diffusion": loss.detach(), "contrast": term.detach()}
        return loss + contrast.settings.weight * term, logs

    def validate(self) -> Validation:
        """Images of 16 captions, in 25 DDIM steps at guidance 2, always from the same noise.

        For the emoji set, each caption has an image in each of the two styles.
        """
        prompts, styles = self.source.preview_captions(), self.source.images.styles
        if styles is not None:
            prompts = [f"{name}, {style}" for name in prompts for style in dict.fromkeys(styles)]
        cond, null = self.source.tokenize(prompts), self.source.tokenize([""])
        denoiser = GuidedDenoiser(Denoiser(unwrap(self.networks["model"]), self.schedule, "v"), null, 2.0)
        noise = SampleRandom(0, range(len(prompts)), self.device).normal("preview", self.source.shape)
        x0 = ddim(lambda x, t: denoiser(x, t, cond), noise, self.schedule, 25)
        return Validation(self.source.space.images(x0))

    def export(self, folder: Path) -> None:
        from diffusers import DDIMScheduler

        from diffdistill.models.families.stable_diffusion import StableDiffusion, stock_pipeline

        model, autoencoder = unwrap(self.networks["model"]), self.source.space.autoencoder
        scheduler: Any = DDIMScheduler(**SCHEDULER)
        pipeline = stock_pipeline(model.inner, autoencoder, model.text_encoder, self.tokenizer, scheduler)
        StableDiffusion().save(pipeline, folder)
        halve(folder)


def _start(source: str, latents: LatentSpace) -> tuple[Any, Any, Any]:
    """UNet, text encoder and tokenizer of a pipeline that was trained by this method.

    Raises:
        UserError: its prediction type, its schedule or its number of latent channels is another one.
    """
    teacher = load_checked_teacher(source)
    check_plain_unet(teacher.backbone.inner, f"network.init_from {source}: this method")
    check_unmasked(teacher.pipeline.text_encoder, f"network.init_from {source}")
    table = VPSchedule.from_config(SCHEDULER).alphas_cumprod
    found = getattr(teacher.schedule, "alphas_cumprod", torch.empty(0))
    if teacher.prediction_type != "v" or not torch.equal(found, table):
        raise UserError(f"network.init_from {source} was not trained with v-prediction on the cosine schedule")
    if (wanted := teacher.latent_shape[0]) != latents.channels:
        raise UserError(
            f"network.init_from {source} takes {wanted} latent channels, but the autoencoder has {latents.channels}"
        )
    unet, text_encoder = teacher.backbone.inner, teacher.pipeline.text_encoder
    for part in (unet, text_encoder):
        part.requires_grad_(True).train()
    return unet, text_encoder, teacher.pipeline.tokenizer
