"""SwiftBrush: variational score distillation into a one-step generator, from prompts alone (arXiv 2312.05239).

    z --student at T*--> x0 --noise--> x_t --teacher, guided--> eps_T \\
                          |                                            > weight * (eps_T - eps_F) = gradient on x0
                          |             x_t --fake score-------> eps_F /
                          +--> the fake score learns to denoise x0 (after the student's update, same x0)

Notable:
- student: x0 = x0-prediction of the teacher's network at time T* for z ~ N(0, I). T* is the last time (the paper), or
  the time whose sigma/alpha is `noise_ratio`; alpha and sigma are read from the schedule;
- guidance: s = 1 is unguided everywhere. The released code guides teacher and fake score alike
  (`fake_guidance_scale` null); 1 leaves the fake score unguided, as DMD does;
- the fake score is a full copy, or LoRA adapters on the teacher itself;
- `residual` may name any row of the family that needs no more than these networks: vsd, sds, csd, asd;
- with `real_images` an adversarial term is added, as in DMD2: a head on the fake score's bottleneck learns to tell
  real pictures from the student's, both noised, and the student to be taken for real. Off by default.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.data.emoji import load_emoji
from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Denoiser
from diffdistill.distill import (
    DENOISING_WEIGHTS,
    RESIDUALS,
    WEIGHTS,
    SampleRandom,
    denoising_loss,
    discriminator_loss,
    drop_condition,
    generator_loss,
    score_distillation_loss,
    surrogate_loss,
)
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.export import export_one_step, halve
from diffdistill.models.fake_score import ScoreWithCritic, adapters_off, add_lora, full_copy
from diffdistill.models.teacher import encode, load_teacher

from .base import Batch, Loss, Method, OptimizerSettings, Phase, check_shares, unwrap

CACHED_BYTES = 1 << 30  # prompt embeddings are kept up to this; beyond it they are made for each batch


class SwiftBrush(Method):
    """Distil a Stable-Diffusion-class teacher into one step; the defaults are the paper's.

    Args:
        teacher: pipeline folder or hub id.
        prompts: text file, one prompt a line.
        residual: row of the score-distillation family: vsd, sds, csd or asd.
        weight: weight on the residual, a name in `distill.WEIGHTS`: sigma2 (the paper), dmd, prd, x0, uniform,
            alpha_sigma, alpha_sigma2.
        guidance_scale: the teacher's guidance.
        fake_guidance_scale: the fake score's; null for the same as the teacher's, 1 for none.
        fake_score: lora or full.
        lora_rank: rank of the adapters.
        lora_alpha: their scale times the rank.
        lora_targets: endings of the names of the layers that get one.
        student_learning_rate: AdamW's, constant unless `training` says otherwise.
        fake_learning_rate: likewise.
        betas: AdamW's, both networks.
        fake_updates: updates of the fake score per update of the student.
        fake_warmup: steps at the start in which the fake score alone learns, so that it knows the student first.
        fake_weight: weight of the fake score's denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        drop_text: share of samples on which the fake score is trained without a prompt.
        t_min: lower end of the times judged, as a fraction.
        t_max: upper end, not included.
        t_max_final: where t_max arrives at the end of training, linearly, for the scores that judge (the adversarial
            term keeps to t_max); null for where it started. Much noise settles shapes, little noise detail: going
            down gives each its turn. Runs that `max_minutes` ends go by the clock, and up again if it is raised.
        noise_ratio: sigma/alpha of the time at which the student is fed; null for the last time.
        asd_eta: largest shift of ASD's later time, relative to t - t_min.
        real_images: folder laid out as assets/emoji with a picture for every prompt, for the adversarial term; null
            for none, so that prompts are all the data.
        adversarial_weight: weight of that term in the student's loss.
        critic_weight: weight of the discriminator's loss in the fake score's.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
    """

    averaged = "student"

    def __init__(
        self,
        teacher: str,
        prompts: str,
        residual: str = "vsd",
        weight: str = "sigma2",
        guidance_scale: float = 4.5,
        fake_guidance_scale: float | None = None,
        fake_score: Literal["lora", "full"] = "lora",
        lora_rank: int = 64,
        lora_alpha: float = 108.0,
        lora_targets: tuple[str, ...] = ("to_q", "to_v"),
        student_learning_rate: float = 1e-6,
        fake_learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        fake_updates: int = 1,
        fake_warmup: int = 0,
        fake_weight: str = "alpha2_eps",
        drop_text: float = 0.1,
        t_min: float = 0.02,
        t_max: float = 0.981,
        t_max_final: float | None = None,
        noise_ratio: float | None = None,
        asd_eta: float = 0.1,
        real_images: str | None = None,
        adversarial_weight: float = 3e-3,
        critic_weight: float = 1e-2,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        look_up(RESIDUALS, residual, "residual")
        look_up(WEIGHTS, weight, "weight")
        look_up(DENOISING_WEIGHTS, fake_weight, "fake_weight")
        if not 0.0 <= t_min < t_max <= 1.0:
            raise UserError(f"t_min {t_min} and t_max {t_max} must be in order and in [0, 1]")
        if t_max_final is not None and not t_min < t_max_final <= t_max:
            raise UserError(f"t_max_final {t_max_final} must be above t_min {t_min} and at most t_max {t_max}")
        check_shares(drop_text=drop_text)
        if fake_updates < 1 or fake_warmup < 0:
            raise UserError(f"fake_updates is {fake_updates}, fake_warmup {fake_warmup}; they must be at least 1 and 0")
        if min(adversarial_weight, critic_weight) < 0:
            raise UserError(f"adversarial_weight {adversarial_weight}, critic_weight {critic_weight}: not below 0")
        self.needs_fake = "fake" in RESIDUALS[residual].needs
        if real_images is not None and not self.needs_fake:
            raise UserError(f"real_images: the discriminator sits on the fake score, and {residual} has none; take vsd")
        self.prompts = read_prompts(prompts)
        self.teacher = load_teacher(teacher)
        self.teacher.pipeline.unet.to(memory_format=torch.channels_last)
        set_attention(self.teacher.pipeline.unet, attention, "cuda" if torch.cuda.is_available() else "cpu")
        self.residual, self.weight, self.guidance_scale = residual, weight, guidance_scale
        self.fake_guidance_scale = guidance_scale if fake_guidance_scale is None else fake_guidance_scale
        self.fake_updates, self.fake_warmup = fake_updates, fake_warmup
        self.fake_weight, self.drop_text = fake_weight, drop_text
        self.t_min, self.t_max, self.asd_eta = t_min, t_max, asd_eta
        self.t_max_final = t_max if t_max_final is None else t_max_final
        self.adversarial_weight, self.critic_weight = adversarial_weight, critic_weight
        self.schedule = self.teacher.schedule
        try:
            self.schedule.timestep(torch.zeros(1), t_min, self.t_max_final)
        except ValueError as error:
            raise UserError(f"t_min {t_min}, t_max {self.t_max_final}: {error}") from error
        last = int(self.schedule.last)
        self.t_star = last if noise_ratio is None else self.schedule.index_at(noise_ratio)
        if self.teacher.prediction_type == "eps" and not self.schedule.alpha(torch.tensor(self.t_star)) > 0:
            raise UserError(
                "the teacher predicts noise and its last time holds no signal, so one step says nothing "
                "of x0; set noise_ratio, 2.5 say"
            )
        self.half_export = half_export
        self.null = self.teacher.embed([""])
        small = len(self.prompts) * self.null.nbytes <= CACHED_BYTES
        self.embeddings = self.teacher.embed(self.prompts) if small else None
        self.content = hashlib.sha256("\n".join([self.teacher.digest(), *self.prompts]).encode()).hexdigest()
        self.networks = {"student": full_copy(self.teacher.network)}
        self.optimizers = {"student": OptimizerSettings(student_learning_rate, betas)}
        self.shared = self.needs_fake and fake_score == "lora"
        if self.needs_fake:
            network = self.teacher.network
            fake = add_lora(network, lora_rank, lora_alpha, lora_targets) if self.shared else full_copy(network)
            self.networks["fake"] = fake if real_images is None else ScoreWithCritic(fake)
            self.optimizers["fake"] = OptimizerSettings(fake_learning_rate, betas)
        self.real = None if real_images is None else self._real_latents(real_images)
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: Any) -> None:
        self.device = torch.device(device)
        for part in (self.teacher.pipeline.unet, self.teacher.pipeline.vae, self.teacher.pipeline.text_encoder):
            part.to(device)
        self.null = self.null.to(device)
        self.embeddings = None if self.embeddings is None else self.embeddings.to(device)
        self.real = None if self.real is None else self.real.to(device)

    def enable_gradient_checkpointing(self) -> None:
        for network in self.networks.values():
            unwrap(network).unet.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        batch = {"cond": self._embed(records)}
        if self.real is not None:
            batch["real"] = self.real[list(records)]
        return batch

    def _embed(self, records: Sequence[int]) -> Tensor:
        """(B, L, D), from the cache or, where the list is too long for one, from the text encoder."""
        if self.embeddings is not None:
            return self.embeddings[list(records)]
        return self.teacher.embed([self.prompts[i] for i in records])

    def _real_latents(self, folder: str) -> Tensor:
        """The latents of each prompt's picture, (N, C, h, w), in the order of the prompts."""
        pictures = load_emoji(folder)
        rows = {caption: i for i, caption in enumerate(pictures.captions)}
        for prompt in self.prompts:
            if prompt not in rows:
                raise UserError(f"real_images {folder} has no picture of the prompt {prompt!r}; each needs one")
        images = pictures.images[[rows[prompt] for prompt in self.prompts]]
        self.content += hashlib.sha256(images.numpy().tobytes()).hexdigest()
        latents = encode(self.teacher.pipeline.vae, images)
        if latents.shape[1:] != self.teacher.latent_shape:
            found, wanted = tuple(latents.shape[1:]), tuple(self.teacher.latent_shape)
            raise UserError(f"real_images {folder}: its latents have shape {found}, the teacher's {wanted}")
        return latents

    def phases(self, step: int) -> list[Phase]:
        fake = [Phase("fake", "fake", self._fake_loss(k)) for k in range(self.fake_updates if self.needs_fake else 0)]
        if fake and step < self.fake_warmup:
            return fake
        return [Phase("student", "student", self._student_loss), *fake]

    # ---- losses -----------------------------------------------------------------------------------------------

    def _generate(self, network: Any, z: Tensor, cond: Tensor) -> Tensor:
        t = torch.full((len(z),), self.t_star, device=z.device, dtype=torch.long)
        return self._denoiser(network)(z, t, cond).x0

    def _denoiser(self, network: Any) -> Denoiser:
        return Denoiser(network, self.schedule, self.teacher.prediction_type)

    def _judge(self, x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        """The teacher's network: the shared one with its adapters off."""
        if not self.shared:
            return self.teacher.network(x_t, time, cond)
        with adapters_off(self.teacher.network):
            return self.teacher.network(x_t, time, cond)

    def _student_loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        shape, cond = self.teacher.latent_shape, batch["cond"]
        x0 = self._generate(self.networks["student"], random.normal("z", shape), cond)
        carry["x0"] = x0.detach()
        t_max = self.t_max + (self.t_max_final - self.t_max) * self.progress
        t = self.schedule.timestep(random.uniform("time"), self.t_min, t_max)
        later = None
        if "later" in RESIDUALS[self.residual].needs:
            later = self.schedule.later(t, random.uniform("later"), self.asd_eta, self.t_min)
        loss, logs = score_distillation_loss(
            self.residual,
            self.weight,
            self._denoiser(self._judge),
            x0,
            t,
            random.normal("noise", shape),
            cond,
            self.null,
            self.guidance_scale,
            fake=self._denoiser(unwrap(self.networks["fake"])) if self.needs_fake else None,
            fake_guidance_scale=self.fake_guidance_scale,
            later_t=later,
        )
        if self.real is None:
            return loss, logs
        push = self._towards_real(x0.detach(), cond, random)
        logs["adversarial_rms"] = push.square().mean().sqrt()
        return loss + surrogate_loss(x0, self.adversarial_weight * push), logs

    def _towards_real(self, x0: Tensor, cond: Tensor, random: SampleRandom) -> Tensor:
        """Gradient of the generator's loss at x0 times the number of elements: on the scale of a residual."""
        t = self.schedule.timestep(random.uniform("critic_time"), self.t_min, self.t_max)
        x0.requires_grad_()
        x_t = self.schedule.add_noise(x0, random.normal("critic_noise", x0.shape[1:]), t)
        logits = unwrap(self.networks["fake"]).logits(x_t, self.schedule.network_time(t), cond)
        (gradient,) = torch.autograd.grad(generator_loss(logits), x0)  # of x0 alone: the fake score's stay untouched
        return gradient * x0.numel()

    def _fake_loss(self, k: int) -> Any:
        def loss(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            x0 = carry.get("x0")
            if k > 0 or x0 is None:  # further updates see fresh samples of the student as it is now
                with torch.no_grad():
                    z = random.normal(f"z/{k}", self.teacher.latent_shape)
                    x0 = self._generate(unwrap(self.networks["student"]), z, batch["cond"])
            t = self.schedule.timestep(random.uniform(f"fake_time/{k}"), 0.0, 1.0)
            cond = drop_condition(batch["cond"], self.null, random.bernoulli(f"fake_drop/{k}", self.drop_text))
            eps = random.normal(f"fake_noise/{k}", self.teacher.latent_shape)
            if self.real is None:
                return denoising_loss(self._denoiser(self.networks["fake"]), x0, t, eps, cond, self.fake_weight), {}
            noise = random.normal(f"real_noise/{k}", self.teacher.latent_shape)
            real = self.schedule.add_noise(batch["real"], noise, t)
            logits: list[Tensor] = []

            def network(x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
                value, *both = self.networks["fake"](x_t, time, cond, real)
                logits.extend(both)
                return value

            denoising = denoising_loss(self._denoiser(network), x0, t, eps, cond, self.fake_weight)
            critic = discriminator_loss(logits[1], logits[0])
            return denoising + self.critic_weight * critic, {"critic": critic}

        return loss

    # ---- product ----------------------------------------------------------------------------------------------

    def preview(self) -> Tensor:
        """32 prompts spread over the list, one step each, always the same noise."""
        rows = [i * len(self.prompts) // 32 for i in range(32)]
        z = SampleRandom(0, range(32), self.device).normal("preview", self.teacher.latent_shape)
        return self.teacher.decode(self._generate(unwrap(self.networks["student"]), z, self._embed(rows)))

    def export(self, folder: Path) -> None:
        unet = copy.deepcopy(unwrap(self.networks["student"]).unet)
        export_one_step(self.teacher, unet, self.t_star, folder)
        if self.half_export:
            halve(folder)
