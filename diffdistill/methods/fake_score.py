"""What one-step methods share that have a fake score, a score model of the student's own samples.

    a step:   student: the method's loss, judged by teacher and fake score
              fake score, n times: denoising loss on samples of the student; the first time on those just judged

With real pictures an adversarial term is added, as in DMD2 (arXiv 2405.14867): a head on the fake score's bottleneck
learns to tell real latents, noised, from the student's at the same time and prompt, and the student is pushed to be
taken for real. Without them, prompts are all the data, and nothing here reads a picture.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, GuidedDenoiser, ScoreModel, drop_condition, take_rows
from diffdistill.distill import (
    DENOISING_WEIGHTS,
    SampleRandom,
    denoising_loss,
    discriminator_loss,
    generator_loss,
    surrogate_loss,
)
from diffdistill.distill.residual import rms
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.backbone import full_copy
from diffdistill.models.critic import ScoreWithCritic
from diffdistill.models.lora import adapters_off, add_lora

from .base import Batch, Loss, Phase, check_shares, unwrap
from .content import digest
from .one_step import OneStep


@dataclass(frozen=True)
class FakeScore:
    """The fake score and how it is trained.

    Args:
        learning_rate: AdamW's; its betas and eps are the student's.
        network: a full copy of the teacher, or LoRA adapters on the teacher itself.
        updates: updates per update of the student.
        warmup: steps at the start in which the fake score alone learns, so that it knows the student first.
        weight: of its denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        drop_text: share of samples on which it is trained without a prompt.
        sample_dropped: those samples are also made without a prompt, so that they are samples of what the student
            draws for the empty prompt; otherwise they are made with the prompt that is then dropped.
        guidance_scale: it is its guided prediction that is trained to denoise; 1 for the plain one.
        t_min, t_max: times it is trained at, as fractions.
        lora_rank, lora_alpha, lora_targets: of the adapters.
    """

    learning_rate: float
    network: Literal["lora", "full"] = "full"
    updates: int = 1
    warmup: int = 0
    weight: str = "alpha2_eps"
    drop_text: float = 0.0
    sample_dropped: bool = False
    guidance_scale: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0
    lora_rank: int = 64
    lora_alpha: float = 108.0
    lora_targets: tuple[str, ...] = ("to_q", "to_v")

    def __post_init__(self) -> None:
        look_up(DENOISING_WEIGHTS, self.weight, "fake_weight")
        check_shares(drop_text=self.drop_text)
        if self.updates < 1 or self.warmup < 0:
            raise UserError(f"fake_updates is {self.updates}, fake_warmup {self.warmup}; at least 1 and 0")


@dataclass(frozen=True)
class Adversary:
    """The adversarial term, on where there are pictures.

    Args:
        real_images: folder laid out as assets/emoji with a picture for every prompt; None for no such term.
        weight: of the term in the student's loss.
        critic_weight: of the discriminator's loss in the fake score's.
    """

    real_images: str | None = None
    weight: float = 3e-3
    critic_weight: float = 1e-2

    def __post_init__(self) -> None:
        if min(self.weight, self.critic_weight) < 0:
            raise UserError(f"adversarial_weight {self.weight}, critic_weight {self.critic_weight}: not below 0")


class WithFakeScore(OneStep):
    """A one-step method with a fake score; see `OneStep` for the rest of the arguments.

    Args:
        fake: its settings, or None for a method that does without in some setting.
        adversary: settings of the adversarial term.
    """

    def __init__(
        self, teacher: str, prompts: str, *, fake: FakeScore | None, adversary: Adversary, **more: Any
    ) -> None:
        super().__init__(teacher, prompts, **more)
        self.fake, self.adversary = fake, adversary
        self.shared = fake is not None and fake.network == "lora"
        if fake is not None:
            network = self.teacher.backbone
            if self.shared:
                network = add_lora(network, fake.lora_rank, fake.lora_alpha, fake.lora_targets)
            else:
                network = full_copy(network)
            self.networks["fake"] = network if adversary.real_images is None else ScoreWithCritic(network)
            self.optimizers["fake"] = replace(self.optimizers["student"], learning_rate=fake.learning_rate)
        self.real = None if adversary.real_images is None else self._real_latents(adversary.real_images)

    def prepare(self, device: torch.device | str) -> None:
        super().prepare(device)
        self.real = None if self.real is None else self.real.to(device)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        batch = super().batch(records, random)
        return batch if self.real is None else {**batch, "real": self.real[list(records)]}

    def _real_latents(self, folder: str) -> Tensor:
        """The latents of each prompt's picture, (N, C, h, w), in the order of the prompts."""
        from diffdistill.data.emoji import load_emoji  # here, so that a run from prompts alone needs no pictures at all

        pictures = load_emoji(folder)
        rows = {caption: i for i, caption in enumerate(pictures.captions)}
        for prompt in self.prompts:
            if prompt not in rows:
                raise UserError(f"real_images {folder} has no picture of the prompt {prompt!r}; each needs one")
        images = pictures.images[[rows[prompt] for prompt in self.prompts]]
        self.content = {**self.content, "real_images": digest(images)}
        latents = self.teacher.latents.encode_bytes(images)
        if latents.shape[1:] != self.teacher.latent_shape:
            found, wanted = tuple(latents.shape[1:]), tuple(self.teacher.latent_shape)
            raise UserError(f"real_images {folder}: its latents have shape {found}, the teacher's {wanted}")
        return latents

    def phases(self, step: int) -> list[Phase]:
        updates = 0 if self.fake is None else self.fake.updates
        fake = [Phase("fake", "fake", self._fake_loss(k)) for k in range(updates)]
        if self.fake is not None and step < self.fake.warmup:
            return fake
        return [Phase("student", "student", self._student_loss), *fake]

    # ---- losses -----------------------------------------------------------------------------------------------

    def _student_loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        cond = batch["cond"]
        x0 = self._sample(self.networks["student"], random, cond)
        carry["x0"] = x0.detach()
        loss, logs = self._judged(x0, cond, random)
        if self.real is None:
            return loss, logs
        push = self._towards_real(x0.detach(), cond, random)
        logs["adversarial_rms"] = rms(push)
        return loss + surrogate_loss(x0, self.adversary.weight * push), logs

    @abstractmethod
    def _judged(self, x0: Tensor, cond: Tensor, random: SampleRandom) -> Loss:
        """The method's own loss on samples of the student."""

    def _judge(self, x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        """The teacher's network: the shared one with its adapters off."""
        if not self.shared:
            return self.teacher.backbone(x_t, time, cond)
        with adapters_off(self.teacher.backbone):
            return self.teacher.backbone(x_t, time, cond)

    def _towards_real(self, x0: Tensor, cond: Tensor, random: SampleRandom) -> Tensor:
        """Gradient of the generator's loss at x0 times the number of elements: on the scale of a residual."""
        t = self.schedule.timestep(random.uniform("critic_time"), self.t_min, self.t_max)
        x0.requires_grad_()
        x_t = self.schedule.add_noise(x0, random.normal("critic_noise", x0.shape[1:]), t)
        logits = unwrap(self.networks["fake"]).logits(x_t, self.schedule.network_time(t), cond)
        (gradient,) = torch.autograd.grad(generator_loss(logits), x0)  # of x0 alone: the fake score's stay untouched
        return gradient * x0.numel()

    def _fake_loss(self, k: int) -> Any:
        """The loss of the k-th update of a step; the last one logs how many there were, where more than one."""
        fake = self.fake
        assert fake is not None

        def loss(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            dropped = random.bernoulli(f"fake_drop/{k}", fake.drop_text)
            cond = drop_condition(batch["cond"], self.null, dropped)
            x0 = self._samples_to_learn(batch["cond"], cond, dropped, random, carry, k)
            t = self.schedule.timestep(random.uniform(f"fake_time/{k}"), fake.t_min, fake.t_max)
            eps = random.normal(f"fake_noise/{k}", self.teacher.latent_shape)
            total, logs = self._denoising(x0, t, eps, cond, batch, random, k)
            if k == fake.updates - 1 > 0:
                logs["updates"] = total.new_tensor(fake.updates)
            return total, logs

        return loss

    @torch.no_grad()
    def _samples_to_learn(
        self, prompted: Any, cond: Any, dropped: Tensor, random: SampleRandom, carry: dict[str, Any], k: int
    ) -> Tensor:
        """What the fake score is to denoise in its k-th update: x0 of the student, without a graph.

        The first update takes the samples just judged; with `sample_dropped`, those without a prompt are made anew.
        """
        assert self.fake is not None
        student = unwrap(self.networks["student"])
        anew = self.fake.sample_dropped
        x0: Tensor | None = carry.get("x0")
        if k > 0 or x0 is None:  # further updates see fresh samples of the student as it is now
            return self._sample(student, random, cond if anew else prompted, f"/{k}")
        rows = dropped.nonzero().squeeze(1)
        if not anew or not len(rows):
            return x0
        fresh = self._sample(student, random.rows(rows), take_rows(cond, rows), f"/{k}")
        return x0.index_copy(0, rows, fresh.to(x0.dtype))

    def _denoising(
        self, x0: Tensor, t: Tensor, eps: Tensor, cond: Condition, batch: Batch, random: SampleRandom, k: int
    ) -> Loss:
        fake = self.fake
        assert fake is not None
        if self.real is None:
            return denoising_loss(self._trained(self.networks["fake"]), x0, t, eps, cond, fake.weight), {}
        noise = random.normal(f"real_noise/{k}", self.teacher.latent_shape)
        real = self.schedule.add_noise(batch["real"], noise, t)
        logits: list[Tensor] = []

        def network(x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
            times = len(x_t) // len(real)  # 2 where both passes of guidance are one batch, the prompt's the last
            value, *both = self.networks["fake"](x_t, time, cond, real.repeat(times, *[1] * (real.dim() - 1)))
            logits.extend(each[-len(real) :] for each in both)
            return value

        loss = denoising_loss(self._trained(network), x0, t, eps, cond, fake.weight)
        critic = discriminator_loss(logits[1], logits[0])
        return loss + self.adversary.critic_weight * critic, {"critic": critic}

    def _trained(self, network: Any) -> ScoreModel:
        """The denoiser that the denoising loss sees: the network's, or its guided one."""
        assert self.fake is not None
        denoiser, scale = self._denoiser(network), self.fake.guidance_scale
        return denoiser if scale == 1 else GuidedDenoiser(denoiser, self.null, scale)
