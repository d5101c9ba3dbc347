"""Students of one step and of a few: how they make a sample, and how they are exported.

    one step     z --network at T*--> x0
    few steps    z --network at t_1--> x0 --noise--> x_{t_2} --network--> x0 ...

T* is the last time of the schedule, or the time whose sigma/alpha is `noise_ratio`. What is exported is a stock
diffusers pipeline with a scheduler that takes exactly these steps.
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
    """T*, the time at which a student is given noise: 0-d, in the schedule's own units.

    Args:
        teacher: whose schedule it is.
        noise_ratio: sigma/alpha there; None for the last time.

    Raises:
        UserError: a ratio that is not above 0, one for a schedule whose noisy samples have no unit variance, or a
            teacher that cannot make x0 from noise alone.
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
            "the teacher predicts noise and its last time holds no signal, so one step says nothing of x0; set "
            "noise_ratio, 2.5 say"
        )
    return time


def require_variance_preserving(teacher: Teacher, method: str) -> VPSchedule:
    """The teacher's schedule, with discrete times, which the method named needs; UserError for another one."""
    if not isinstance(teacher.schedule, VPSchedule):
        raise UserError(
            f"{method} needs a teacher of a variance-preserving schedule, Stable Diffusion or SDXL say; this one was "
            "trained by flow matching"
        )
    return teacher.schedule


class OneStepStudent:
    """x0 is the x0-prediction of the network at T* for noise z.

    Args:
        teacher: whose schedule, prediction type and latent shape it has.
        noise_ratio: as of `first_time`.

    Attributes:
        time: T*, 0-d.
    """

    def __init__(self, teacher: Teacher, noise_ratio: float | None = None) -> None:
        self.teacher, self.time = teacher, first_time(teacher, noise_ratio)

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 as the student is trained to make it; another `draw` is from another noise."""
        return self._x0(network, random.normal(f"z{draw}", self.teacher.latent_shape), cond)

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 as a user gets it, from the noise of previews."""
        return self._x0(network, random.normal("preview", self.teacher.latent_shape), cond)

    def _x0(self, network: Any, z: Tensor, cond: Condition) -> Tensor:
        return self.teacher.denoiser(network)(z, self.time.to(z.device).expand(len(z)), cond).x0

    def exported(self, network: Any) -> Any:
        """The diffusers network that is exported, a copy."""
        return copy.deepcopy(unwrap(network).inner)

    def scheduler(self) -> Any:
        """The diffusers scheduler whose one step is the student's."""
        return self.teacher.family.one_step_scheduler(self.teacher, self.time.item())


class FewStepStudent:
    """A student of k steps, trained at one of them for each sample, on inputs that its earlier steps made.

    Args:
        teacher, noise_ratio: as of `OneStepStudent`.
        steps: k, from 2.

    Attributes:
        times: t_1 > ... > t_k, of shape (k,).

    Raises:
        UserError: a number of steps that the schedule does not have.
    """

    def __init__(self, teacher: Teacher, noise_ratio: float | None, steps: int) -> None:
        self.teacher, self.time = teacher, first_time(teacher, noise_ratio)
        try:
            self.times = few_step_times(teacher.schedule, self.time, steps)
        except ValueError as error:
            raise UserError(f"steps is {steps}: {error}") from error
        if self.times[-1] == 0:
            raise UserError(f"steps is {steps}, as many as there are times; the exported sampler takes none at time 0")

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 after one of the steps, drawn for each sample, with a graph of that step alone."""
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
