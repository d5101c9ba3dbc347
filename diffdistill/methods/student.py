"""Students of one step and of a few steps: how they make samples, and how they are exported.

    one step     z --network at T*--> x0
    few steps    z --network at t_1--> x0 --noise--> x_{t_2} --network--> x0 ...

T* is the last time of the schedule, or the time at which sigma/alpha is `noise_ratio`. The product is a stock diffusers
pipeline with a scheduler that takes exactly these steps.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, VPSchedule
from diffdistill.distill import SampleRandom, backward_simulation, few_step_sample, few_step_times
from diffdistill.errors import UserError
from diffdistill.models.teacher import Teacher

from .base import unwrap


def first_time(teacher: Teacher, noise_ratio: float | None) -> Tensor:
    """T*, the time at which a student gets noise: 0-d, in the schedule's own units.

    Args:
        teacher: the teacher, whose schedule it is.
        noise_ratio: sigma/alpha at this time; None for the last time.

    Raises:
        UserError: the ratio is not above 0, the teacher was trained by flow matching and there is a ratio, or the
            teacher's prediction at this time does not determine x0.
    """
    if noise_ratio is not None and not 0 < noise_ratio < math.inf:
        raise UserError(f"noise_ratio is {noise_ratio}; sigma/alpha is a number above 0, or null for the last time")
    schedule = teacher.schedule
    if not isinstance(schedule, VPSchedule):
        if noise_ratio is not None:
            raise UserError(
                f"noise_ratio is {noise_ratio}; a flow-matching teacher starts from noise alone, so set it to null"
            )
        return torch.tensor(schedule.last, dtype=torch.float64)
    time = torch.tensor(schedule.last) if noise_ratio is None else schedule.time_at(noise_ratio)
    if teacher.prediction_type == "eps" and not schedule.alpha(time) > 0:
        raise UserError(
            "the teacher predicts noise, and there is no signal at its last time, so its prediction does not determine "
            "x0; set noise_ratio, for example to 2.5"
        )
    return time


def require_variance_preserving(teacher: Teacher, method: str) -> VPSchedule:
    """The teacher's variance-preserving schedule, with discrete times.

    Raises:
        UserError: the teacher has another kind of schedule; the message names the method.
    """
    if not isinstance(teacher.schedule, VPSchedule):
        raise UserError(
            f"{method} needs a teacher of a variance-preserving schedule, such as Stable Diffusion or SDXL; this one "
            "was trained by flow matching"
        )
    return teacher.schedule


class OneStepStudent:
    """A student whose sample is the network's x0-prediction at T* for noise z.

    Args:
        teacher: the teacher, for its schedule, prediction type and latent shape.
        noise_ratio: see `first_time`.

    Attributes:
        time: T*, 0-d.
    """

    def __init__(self, teacher: Teacher, noise_ratio: float | None = None) -> None:
        self.teacher, self.time = teacher, first_time(teacher, noise_ratio)

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 as the student is trained to make it; another `draw` starts from another noise."""
        return self.x0(network, random.normal(f"z{draw}", self.teacher.latent_shape), cond)

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 as the exported pipeline samples it, from the noise of previews."""
        return self.x0(network, random.normal("preview", self.teacher.latent_shape), cond)

    def x0(self, network: Any, z: Tensor, cond: Condition) -> Tensor:
        """The sample that the network makes of noise z, both of shape (B, C, h, w)."""
        return self.teacher.denoiser(network)(z, self.time.to(z.device).expand(len(z)), cond).x0

    def exported(self, network: Any) -> Any:
        """The diffusers network that is exported, a copy."""
        return copy.deepcopy(unwrap(network).inner)

    def scheduler(self) -> Any:
        """The diffusers scheduler whose one step is the student's."""
        return self.teacher.family.one_step_scheduler(self.teacher, self.time.item())


class FewStepStudent:
    """A student of k steps. For each sample it is trained at one step, on inputs from its earlier steps.

    Args:
        teacher: the teacher, for its schedule, prediction type and latent shape.
        noise_ratio: see `first_time`.
        steps: k, at least 2.

    Attributes:
        times: t_1 > ... > t_k, of shape (k,).

    Raises:
        UserError: the schedule has not enough times for so many steps.
    """

    def __init__(self, teacher: Teacher, noise_ratio: float | None, steps: int) -> None:
        self.teacher, self.time = teacher, first_time(teacher, noise_ratio)
        try:
            self.times = few_step_times(teacher.schedule, self.time, steps)
        except ValueError as error:
            raise UserError(f"steps is {steps}: {error}") from error
        if self.times[-1] == 0:
            raise UserError(
                f"steps is {steps}, the number of all times; it must be less, because the exported sampler takes no "
                "step at time 0"
            )

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 after one step, which is drawn for each sample, with a graph of that step alone."""
        z, noises = self._noises(random, f"z{draw}", f"renoise{draw}")
        step = random.integers(f"step{draw}", len(self.times))
        bare = self.teacher.denoiser(unwrap(network))
        inputs, t = backward_simulation(bare, z, self.times, noises, cond, step)
        return self.teacher.denoiser(network)(inputs, t, cond).x0

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 after all steps, from the noise of previews."""
        z, noises = self._noises(random, "preview", "preview renoise")
        return few_step_sample(self.teacher.denoiser(network), z, self.times, noises, cond)

    def _noises(self, random: SampleRandom, first: str, later: str) -> tuple[Tensor, list[Tensor]]:
        shape = self.teacher.latent_shape
        noises = [random.normal(f"{later}/{i}", shape) for i in range(len(self.times) - 1)]
        return random.normal(first, shape), noises

    def exported(self, network: Any) -> Any:
        """The diffusers network that is exported, a copy."""
        return copy.deepcopy(unwrap(network).inner)

    def scheduler(self) -> Any:
        """The diffusers scheduler that takes the student's steps."""
        return self.teacher.family.few_step_scheduler(self.teacher, self.time.item(), len(self.times))
