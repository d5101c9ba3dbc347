"""MeanFlow: text to image in one step or more, from data, by the average velocity's own identity (arXiv 2505.13447).

    r = t   flow matching                                                       a share `same` of the samples
    r < t   u(x_t, t, r) towards v - (t - r) du/dt, `distill.mean_flow`

Notable:
- du/dt is a Jacobian-vector product in forward mode, which fused attention has not: attention is `math`. With
  `derivative: difference` any attention will do;
- the network is told time_scale * t, and du/dt is time_scale times what its sines change by: far smaller than 1000;
- a difference's step turns the fastest of those sines by a twelfth of a radian. In a network that began as a teacher
  they are of the teacher's own times, up to 1000;
- with `guidance` the field learnt is the guided one, so that one pass samples with guidance.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.diffusion.any_step import TwoTimeDenoiser
from diffdistill.distill import SampleRandom
from diffdistill.distill.flow_matching import logit_normal_times
from diffdistill.distill.mean_flow import full_precision, guided_velocity, mean_flow_loss, mean_flow_times
from diffdistill.errors import UserError

from .any_step import AnyStep
from .base import Batch, Loss, check_shares, unwrap


class MeanFlow(AnyStep):
    """Train a model of average velocities; the defaults are the paper's for ImageNet where it has them.

    Args:
        autoencoder, data, block_out_channels, cross_attention, layers_per_block, text_width, text_layers: as of
            `TextToImage`.
        learning_rate: peak of AdamW's.
        betas: AdamW's.
        weight_decay: AdamW's; the released code has 0.
        drop_text: share of samples trained with the empty caption.
        recolour, shift, mirror, variants: of the pictures, as of `TextToImage`.
        init_from: an any-step model's folder, of the same time_scale, or a teacher, to start from; null for nothing.
        same: share of samples with r = t.
        time_mean: mean of the logits of t and r.
        time_std: their standard deviation.
        power: of the adaptive weight; 0 for none.
        floor: c of the adaptive weight.
        guidance: omega of the guided velocity; null for the plain one.
        guidance_mix: kappa; the effective scale is guidance / (1 - guidance_mix).
        derivative: jvp or difference.
        time_scale: the network is told time_scale * t.
        attention: math, or sdpa, xformers and auto with `derivative: difference`.
        half_export: store the exported UNet's and VAE's weights as float16.
        stock_one_step: export one step as a stock pipeline too, in the folder `one_step`.
    """

    name = "mean_flow"

    def __init__(
        self,
        autoencoder: str = "assets/teacher/vae",
        data: str = "assets/emoji",
        block_out_channels: tuple[int, ...] = (128, 128),
        cross_attention: tuple[bool, ...] = (False, True),
        layers_per_block: int = 1,
        text_width: int = 128,
        text_layers: int = 2,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        drop_text: float = 0.1,
        recolour: float = 0.15,
        shift: int = 0,
        mirror: bool = False,
        variants: int = 12,
        init_from: str | None = None,
        same: float = 0.75,
        time_mean: float = -0.4,
        time_std: float = 1.0,
        power: float = 1.0,
        floor: float = 1e-3,
        guidance: float | None = None,
        guidance_mix: float = 0.0,
        derivative: Literal["jvp", "difference"] = "jvp",
        time_scale: int = 16,
        attention: str = "math",
        half_export: bool = False,
        stock_one_step: bool = False,
    ) -> None:
        check_shares(same=same)
        if not 0 <= guidance_mix < 1:
            raise UserError(f"guidance_mix is {guidance_mix}; it must be from 0 to below 1")
        if not floor > 0:
            raise UserError(f"floor is {floor}; it must be above 0")
        if derivative == "jvp" and attention != "math":
            raise UserError(f"attention {attention} has no forward mode; take math, or derivative difference")
        if guidance is not None and drop_text == 0:
            raise UserError("drop_text is 0: guidance leads away from what is never trained; set guidance to null")
        source = {
            "autoencoder": autoencoder, "data": data, "block_out_channels": block_out_channels,
            "cross_attention": cross_attention, "layers_per_block": layers_per_block, "text_width": text_width,
            "text_layers": text_layers, "drop_text": drop_text, "recolour": recolour, "shift": shift,
            "mirror": mirror, "variants": variants,
        }  # fmt: skip
        super().__init__(
            source,
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            init_from=init_from,
            average_decay=None,
            time_scale=time_scale,
            attention=attention,
            half_export=half_export,
            stock_one_step=stock_one_step,
        )
        self.same, self.time_mean, self.time_std = same, time_mean, time_std
        self.power, self.floor, self.derivative = power, floor, derivative
        self.guidance, self.guidance_mix = guidance, guidance_mix
        self.preview_guidance = 2.0 if guidance is None else 1.0
        model: Any = self.networks["model"]
        told = model.process.schedule.num_train_timesteps if model.process else time_scale  # radians, t from 0 to 1
        self.step = min(5e-3, 0.08 / told)

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x0, ids = batch["x0"], batch["ids"]
        draws = (random.normal(stream, (), torch.float64) for stream in ("first", "second"))
        first, second = (logit_normal_times(draw, self.time_mean, self.time_std) for draw in draws)
        t, r = mean_flow_times(first, second, random.bernoulli("same", self.same))
        eps = self.noise(random, "noise", x0)
        live = self.exact
        embeddings = self.live_text(ids)  # the derivative is of the UNet alone: text is the same at every time
        velocity = None
        if self.guidance is not None:
            null = self.live_text(self.null)
            x_t = self.schedule.add_noise(x0, eps, t)
            v = eps - x0
            made = guided_velocity(live, x_t, t, v, embeddings, null, self.guidance, self.guidance_mix)
            captioned = (ids != self.null).any(1)[:, None, None, None]
            velocity = torch.where(captioned, made, v)  # without a caption there is nothing to guide towards
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
            weight_eps=self.floor,
        )

    @property
    def exact(self) -> TwoTimeDenoiser:
        """`live` in full precision: by the class's forward, as accelerate gives a network one that starts autocast."""
        model: Any = unwrap(self.networks["model"])
        return TwoTimeDenoiser(partial(type(model).forward, model), self.schedule)

    @torch.no_grad()
    def live_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) to embeddings (B, L, D), in full precision too."""
        with full_precision(ids):
            embeddings: Tensor = unwrap(self.networks["model"]).encode(ids)
        return embeddings
