"""The judge: a frozen teacher and, if the loss needs one, a fake score. It turns samples into a gradient on them.

    x0 --noise--> x_t --+--> teacher, guided ----------> e_T  \\
                        |                                      > weight * (e_T - e_F) = gradient on x0
                        +--> fake score -------------> e_F  /
    x0, no graph --noise--> x_t --> fake score --> denoising loss: the fake score learns what the samples look like

Whatever makes samples holds a judge: a one-step student, a codec, a text-to-3D generator. No class inherits from it.
With an `Adversary`, the fake score also learns to tell real samples from generated ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffdistill.diffusion import (
    Condition,
    Denoiser,
    GuidedDenoiser,
    PerpNeg,
    ScoreModel,
    drop_condition,
    take_rows,
)
from diffdistill.distill import RESIDUALS, JudgingOptions, SampleRandom, denoising_loss, score_distillation_loss
from diffdistill.errors import UserError
from diffdistill.models.backbone import full_copy
from diffdistill.models.lora import adapters_off, add_lora
from diffdistill.models.teacher import Teacher

from .adversary import Adversary
from .base import Batch, Loss, OptimizerSettings, Phase, unwrap
from .settings import FakeScore, JudgedTimes

SampleLoss = Callable[[Tensor, Condition, SampleRandom], Loss]


class SampleMaker(Protocol):
    """A function that makes the samples that a fake score learns, such as a student's `train_sample`."""

    def __call__(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 of shape (B, C, h, w); another `draw` starts from another noise."""


class Judge:
    """A teacher at a range of times, with or without a fake score.

    Args:
        teacher: the frozen model.
        times: the range of times at which samples are judged.
        guidance_scale: the teacher's guidance; 1 is none.
        fake: settings of the fake score; None for a loss without one.
        adversary: the adversarial term; None for none.

    Attributes:
        networks: the method's own networks, after `add_networks`.
        progress: share of the run that is done; the method sets it before each step if `times.moves`.

    Raises:
        UserError: a range holds none of the schedule's times, or there is an adversary without a fake score.
    """

    def __init__(
        self,
        teacher: Teacher,
        times: JudgedTimes,
        guidance_scale: float,
        fake: FakeScore | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        for low, high in (times.first, times.last):
            try:
                teacher.schedule.timestep(torch.zeros(1), low, high)
            except ValueError as error:
                raise UserError(f"times: t_min {low}, t_max {high}: {error}") from error
        if adversary is not None and fake is None:
            raise UserError("adversary: the discriminator needs the features of a fake score; this loss has none")
        self.teacher, self.times, self.guidance_scale = teacher, times, guidance_scale
        self.fake, self.adversary = fake, adversary
        self.shared = fake is not None and fake.network == "lora"
        self.null: Condition = None  # set by `prepare`
        self.progress = 0.0
        self.networks: dict[str, nn.Module] = {}

    def add_networks(self, networks: dict[str, nn.Module], optimizers: dict[str, OptimizerSettings]) -> None:
        """Add the fake score's network and its optimiser to those of the method, as "fake". Without one, do nothing.

        This puts adapters on the teacher's own network, so it must be copied before.

        Raises:
            UserError: the adapters do not fit the network.
        """
        fake = self.fake
        if fake is None:
            return
        if self.shared:
            if next(self.teacher.backbone.parameters()).dtype == torch.float16:
                raise UserError(
                    "fake.network is lora, and the gradients of a teacher in float16 underflow; set teacher.dtype to "
                    "bfloat16"
                )
            targets = self.teacher.family.lora_targets if fake.lora.targets is None else fake.lora.targets
            network = add_lora(self.teacher.backbone, fake.lora.rank, fake.lora.alpha, targets)
        else:
            network = full_copy(self.teacher.backbone)
        networks["fake"] = network if self.adversary is None else self.adversary.with_critic(network)
        optimizers["fake"] = fake.optimizer
        self.networks = networks

    def prepare(self, null: Condition, device: torch.device) -> None:
        """Keep the condition of the empty prompt, which is on the device, and prepare the adversarial term."""
        self.null = null
        if self.adversary is not None:
            self.adversary.prepare(self.teacher, null, device)

    @property
    def warmup(self) -> int:
        """Number of steps at the start in which the fake score alone is trained."""
        return 0 if self.fake is None else self.fake.warmup

    @property
    def range(self) -> tuple[float, float]:
        """The times judged at this point of the run, as fractions of the schedule."""
        return self.times.at(self.progress)

    # ---- score models -----------------------------------------------------------------------------------------

    @property
    def teacher_score(self) -> Denoiser:
        """The teacher, unguided. If the fake score is adapters on its network, they are off."""
        return self.teacher.denoiser(self._teacher_forward if self.shared else None)

    @property
    def fake_score(self) -> Denoiser:
        """The fake score, unguided, for passes without a graph of its weights."""
        return self.teacher.denoiser(unwrap(self.networks["fake"]))

    def _teacher_forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        with adapters_off(self.teacher.backbone):
            value: Tensor = self.teacher.backbone(x_t, time, cond)
        return value

    # ---- judging ----------------------------------------------------------------------------------------------

    def loss(
        self,
        x0: Tensor,
        cond: Condition,
        random: SampleRandom,
        *,
        residual: str,
        weight: str,
        eta: float = 0.1,
        null: Condition = None,
        perp_neg: PerpNeg | None = None,
        reduction: str = "mean",
    ) -> Loss:
        """`score_distillation_loss` at a time drawn from the present range.

        Args:
            x0: samples of shape (B, C, h, w), with a graph.
            cond: their condition.
            random: random numbers of the batch.
            residual: a name in `RESIDUALS`.
            weight: a name in `WEIGHTS`.
            eta: largest shift of ASD's later time, as a fraction of t - t_min.
            null: the empty condition of this batch, where it has parts of each sample, such as cameras; None for that
                of `prepare`.
            perp_neg: negative prompts of the teacher's guidance.
            reduction: "mean" or "batch", see `surrogate_loss`.
        """
        low, high = self.range
        t = self.teacher.schedule.timestep(random.uniform("time"), low, high)
        later = None
        if "later" in RESIDUALS[residual].needs:
            later = self.teacher.schedule.later(t, random.uniform("later"), eta, low)
        fake = self.fake if "fake" in RESIDUALS[residual].needs else None
        noise = random.normal("noise", x0.shape[1:])
        weights = None
        if self.adversary is not None:
            weights = self.adversary.weights(x0, t, noise, cond, self.teacher.schedule, self.networks)
        return score_distillation_loss(
            residual,
            weight,
            self.teacher_score,
            x0,
            t,
            noise,
            cond,
            self.null if null is None else null,
            self.guidance_scale,
            fake=None if fake is None else self.fake_score,
            fake_guidance_scale=1.0 if fake is None else fake.judging_scale(self.guidance_scale),
            options=JudgingOptions(later_t=later, perp_neg=perp_neg),
            reduction=reduction,
            sample_weights=weights,
        )

    # ---- the phases of a step ---------------------------------------------------------------------------------

    def phases(self, step: int, sample: SampleMaker, networks: dict[str, nn.Module], loss: SampleLoss) -> list[Phase]:
        """One update of the student by `loss` on its samples, then the updates of the fake score.

        Args:
            step: number of the step; before step `warmup` the student is not updated.
            sample: makes x0 with a network.
            networks: the method's own dict of networks, with the student as "student".
            loss: the method's loss on samples; takes (x0, cond, random).
        """

        def student(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            cond = batch["cond"]
            x0 = sample(networks["student"], random, cond)
            carry["x0"] = x0.detach()
            value, logs = loss(x0, cond, random)
            if self.adversary is None:
                return value, logs
            push, more = self.adversary.loss(x0, cond, random, self.teacher.schedule, self.times.first, networks)
            return value + push, {**logs, **more}

        fake = self.fake_phases(sample, networks)
        return fake if step < self.warmup else [Phase("student", "student", student), *fake]

    def fake_phases(self, sample: SampleMaker, networks: dict[str, nn.Module]) -> list[Phase]:
        """The updates of the fake score; the first one is on the samples that were judged, `carry["x0"]`."""
        updates = 0 if self.fake is None else self.fake.updates
        return [Phase("fake", "fake", self._fake_loss(k, sample, networks)) for k in range(updates)]

    def _fake_loss(self, k: int, sample: SampleMaker, networks: dict[str, nn.Module]) -> Any:
        """The loss of the k-th update in a step. If there are several, the last one logs their number."""
        fake = self.fake
        assert fake is not None
        drop_text = fake.dropped(self.guidance_scale)
        first, end = (0.0, 1.0) if fake.train_times == "all" else self.times.first

        def loss(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            dropped = random.bernoulli(f"fake_drop/{k}", drop_text)
            cond = drop_condition(batch["cond"], batch.get("null", self.null), dropped)
            with torch.no_grad():
                x0 = self._samples_to_learn(sample, batch["cond"], cond, dropped, random, carry, k, networks)
            t = self.teacher.schedule.timestep(random.uniform(f"fake_time/{k}"), first, end)
            eps = random.normal(f"fake_noise/{k}", x0.shape[1:])
            logs: dict[str, Tensor] = {}
            if self.adversary is None:
                total = denoising_loss(self._trained(networks["fake"]), x0, t, eps, cond, fake.weight)
            else:
                if (own := batch.get("real_cond")) is not None:  # the prompt must not tell which is real
                    batch = {**batch, "real_cond": drop_condition(own, batch.get("null", self.null), dropped)}
                both = self.adversary.seen(batch, t, random, k, self.teacher.schedule, networks)
                total = denoising_loss(self._trained(both), x0, t, eps, cond, fake.weight)
                critic = both.loss()
                total, logs = total + self.adversary.settings.critic_weight * critic, {"critic": critic}
            if k == fake.updates - 1 > 0:
                logs["updates"] = total.new_tensor(fake.updates)
            return total, logs

        return loss

    def _samples_to_learn(
        self,
        sample: SampleMaker,
        prompted: Condition,
        cond: Condition,
        dropped: Tensor,
        random: SampleRandom,
        carry: dict[str, Any],
        k: int,
        networks: dict[str, nn.Module],
    ) -> Tensor:
        """The samples that the fake score learns to denoise in its k-th update: x0 of the student, without a graph.

        The first update takes the samples that were just judged. With `sample_dropped`, those without a prompt are made
        again.
        """
        assert self.fake is not None
        anew, x0 = self.fake.sample_dropped, carry.get("x0")
        if k > 0 or x0 is None:  # later updates take fresh samples of the present student
            return sample(unwrap(networks["student"]), random, cond if anew else prompted, f"/{k}")
        rows = dropped.nonzero().squeeze(1)
        if not anew or not len(rows):
            return x0  # type: ignore[no-any-return]
        fresh = sample(unwrap(networks["student"]), random.rows(rows), take_rows(cond, rows), f"/{k}")
        return x0.index_copy(0, rows, fresh.to(x0.dtype))  # type: ignore[no-any-return]

    def _trained(self, network: Any) -> ScoreModel:
        """The score model of the denoising loss: the network itself, or the network with guidance."""
        assert self.fake is not None
        denoiser, scale = self.teacher.denoiser(network), self.fake.training_scale(self.guidance_scale)
        return denoiser if scale == 1 else GuidedDenoiser(denoiser, self.null, scale)
