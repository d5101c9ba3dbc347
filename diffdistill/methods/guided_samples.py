"""A score model of the teacher's guided samples: it draws without guidance what the teacher draws with it.

    z, prompt --teacher, guided, n steps--> x0 --noise--> x_t --network, unguided--> denoising loss

Guided predictions are not the score of any one distribution: at each time they belong to another, sharper one, and a
generator that follows them at all times becomes sharper than the images that the guided sampler draws. The network here
learns the score of exactly these images. As a teacher of score distillation, without guidance, it asks for their
variety too. As a model of its own it takes half of the passes of the guided teacher.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition, FlowSchedule, Prediction, ddim, euler
from diffdistill.distill import DENOISING_WEIGHTS, SampleRandom, denoising_loss
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.teacher import Teacher

from .base import Batch, Loss, OptimizerSettings, Phase, open_teacher, unwrap
from .one_step import OneStep, pairs_of
from .settings import ExportSettings, HealthSettings, PairSettings, TeacherSettings


class ManySteps:
    """How the score model samples: unguided, in as many steps as the teacher took.

    Args:
        teacher: the teacher, for its schedule, scheduler and latent shape.
        steps: number of steps of previews.
    """

    def __init__(self, teacher: Teacher, steps: int) -> None:
        self.teacher, self.steps = teacher, steps

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 of the noise of a draw, without a graph."""
        with torch.no_grad():
            return self._sample(network, random, cond, f"z{draw}")

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 of the noise of previews."""
        return self._sample(network, random, cond, "preview")

    def _sample(self, network: Any, random: SampleRandom, cond: Condition, stream: str) -> Tensor:
        score, schedule = self.teacher.denoiser(unwrap(network)), self.teacher.schedule

        def predict(x: Tensor, t: Tensor) -> Prediction:
            return score(x, t, cond)

        sampler = euler if isinstance(schedule, FlowSchedule) else ddim
        return sampler(predict, random.normal(stream, self.teacher.latent_shape), schedule, self.steps)

    def exported(self, network: Any) -> Any:
        """The diffusers network that is exported, a copy."""
        return copy.deepcopy(unwrap(network).inner)

    def scheduler(self) -> Any:
        """The teacher's own scheduler."""
        return self.teacher.pipeline.scheduler


class GuidedSamples(OneStep):
    """Train a copy of the teacher on the teacher's guided samples, from prompts alone.

    Args:
        teacher: the model whose samples are learned.
        prompts: a file of prompts.
        pairs: the samples.
        weight: weight of the denoising loss, a name in `distill.DENOISING_WEIGHTS`.
        optimizer: the optimiser.
        health: numbers of the network's samples against the teacher's, at each validation.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        pairs: PairSettings = PairSettings(10_000),
        weight: str = "v",
        optimizer: OptimizerSettings = OptimizerSettings(1e-4),
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        look_up(DENOISING_WEIGHTS, weight, "weight")
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        made = pairs_of(pairs, loaded, texts)
        if made is None:
            raise UserError("pairs.count is 0; there is nothing to learn from")
        self.made, self.weight = made, weight
        student = ManySteps(loaded, pairs.steps)
        super().__init__(loaded, texts, student, optimizer, export, pairs=made, health=health)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        _, x0, cond = self.made.drawn(random, "pair")
        t = self.schedule.timestep(random.uniform("time"), 0.0, 1.0)
        score = self.teacher.denoiser(self.networks["student"])
        return denoising_loss(score, x0, t, random.normal("noise", x0.shape[1:]), cond, self.weight), {}
