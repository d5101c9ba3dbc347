"""MeanFlow: text to image in one step or more, from data, by an identity of the average velocity (arXiv 2505.13447).

    r = t   flow matching                                                       a share `flow_matching_share`
    r < t   u(x_t, t, r) towards v - (t - r) du/dt, `distill.mean_flow`

Notable:
- du/dt is a Jacobian-vector product in forward mode. Fused attention does not support it, so attention is `math`. With
  `derivative: difference` any attention works;
- the network takes time_scale * t, so du/dt is time_scale times the change of the sines in its time embedding. A scale
  of 16 keeps this small, and 1000 would not;
- the step of a difference turns the fastest of these sines by a twelfth of a radian. A network that began as a teacher
  takes the teacher's own times, up to 1000;
- with `guidance_scale` the network learns the guided field, so that one pass samples with guidance.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.data.captioned import CaptionedData
from diffdistill.diffusion import TwoTimeDenoiser, expand
from diffdistill.distill import (
    SampleRandom,
    full_precision,
    guided_velocity,
    logit_normal_times,
    mean_flow_loss,
    mean_flow_times,
)
from diffdistill.errors import UserError

from .any_step import AnyStep, AnyStepExport
from .base import Batch, Loss, OptimizerSettings, Phase, check_shares, unwrap
from .captioned_latents import Augmentation
from .new_network import NetworkSettings


class MeanFlow(AnyStep):
    """Train a model of average velocities; the defaults are the paper's for ImageNet where it has them.

    Args:
        data: captioned images.
        network: the autoencoder, and the sizes or the start of the networks that are trained. `network.attention` must
            be math unless `derivative` is difference.
        augmentation: how images and captions are varied.
        optimizer: settings of AdamW; the released code has no weight decay.
        flow_matching_share: share of samples with r = t.
        time_mean: mean of the logits of t and r.
        time_std: standard deviation of these logits.
        power: exponent of the adaptive weight; 0 for no such weight.
        weight_eps: c of the adaptive weight.
        guidance_scale: omega of the guided velocity; null for the unguided one.
        guidance_mix: kappa; the effective scale is guidance_scale / (1 - guidance_mix).
        derivative: jvp or difference.
        time_scale: the network takes time_scale * t.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or settings contradict each other.
    """

    def __init__(
        self,
        data: CaptionedData = CaptionedData(),
        network: NetworkSettings = NetworkSettings(attention="math"),
        augmentation: Augmentation = Augmentation(),
        optimizer: OptimizerSettings = OptimizerSettings(1e-4, (0.9, 0.95)),
        flow_matching_share: float = 0.75,
        time_mean: float = -0.4,
        time_std: float = 1.0,
        power: float = 1.0,
        weight_eps: float = 1e-3,
        guidance_scale: float | None = None,
        guidance_mix: float = 0.0,
        derivative: Literal["jvp", "difference"] = "jvp",
        time_scale: int = 16,
        export: AnyStepExport = AnyStepExport(),
    ) -> None:
        check_shares(flow_matching_share=flow_matching_share)
        if not 0 <= guidance_mix < 1:
            raise UserError(f"guidance_mix is {guidance_mix}; it must be from 0 to below 1")
        if not weight_eps > 0:
            raise UserError(f"weight_eps is {weight_eps}; it must be above 0")
        if derivative == "jvp" and network.attention != "math":
            raise UserError(
                f"network.attention {network.attention} has no forward mode; set it to math, or set derivative to "
                "difference"
            )
        if guidance_scale is not None and augmentation.drop_text == 0:
            raise UserError(
                "augmentation.drop_text is 0, so the prediction without a caption, which guidance leads away from, "
                "would never be trained; set guidance_scale to null"
            )
        super().__init__(
            data,
            network,
            augmentation,
            optimizer,
            export,
            time_scale=time_scale,
            preview_guidance=2.0 if guidance_scale is None else 1.0,
        )
        self.flow_matching_share, self.time_mean, self.time_std = flow_matching_share, time_mean, time_std
        self.power, self.weight_eps, self.derivative = power, weight_eps, derivative
        self.guidance_scale, self.guidance_mix = guidance_scale, guidance_mix
        process: Any = unwrap(self.networks["model"]).process
        scale = process.schedule.num_train_timesteps if process else time_scale  # radians, t from 0 to 1
        self.step = min(5e-3, 0.08 / scale)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("mean_flow", "model", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0, ids = batch["x0"], batch["ids"]
        draws = (random.normal(stream, (), torch.float64) for stream in ("first", "second"))
        first, second = (logit_normal_times(draw, self.time_mean, self.time_std) for draw in draws)
        t, r = mean_flow_times(first, second, random.bernoulli("same", self.flow_matching_share))
        eps = self.noise(random, "noise", x0)
        live = self.exact
        embeddings = self.live_text(ids)  # the derivative is of the UNet alone; the text does not depend on time
        velocity = None
        if self.guidance_scale is not None:
            null = expand(self.live_text(self.null), len(embeddings))
            x_t = self.schedule.add_noise(x0, eps, t)
            v = eps - x0
            made = guided_velocity(live, x_t, t, v, embeddings, null, self.guidance_scale, self.guidance_mix)
            captioned = (ids != self.null).any(1)[:, None, None, None]
            velocity = torch.where(captioned, made, v)  # without a caption there is no guidance
        return mean_flow_loss(
            self.trained,
            x0,
            t,
            r,
            eps,
            ids,
            target=live,
            target_cond=embeddings,
            velocity=velocity,
            derivative=self.derivative,
            step=self.step,
            power=self.power,
            weight_eps=self.weight_eps,
        )

    @property
    def exact(self) -> TwoTimeDenoiser:
        """`live` in full precision. It calls the forward of the class, because accelerate's forward starts autocast."""
        model: Any = unwrap(self.networks["model"])
        return TwoTimeDenoiser(partial(type(model).forward, model), self.schedule)

    @torch.no_grad()
    def live_text(self, ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of token ids (B, L), in full precision."""
        with full_precision(ids):
            embeddings: Tensor = unwrap(self.networks["model"]).encode(ids)
        return embeddings
