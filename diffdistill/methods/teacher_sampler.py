"""Samples of the teacher in several deterministic steps, with its own schedule.

The sampler is DPM-Solver++(2M), or Euler's method for a flow. On the embedded teacher eight of its steps are as good as
sixteen of DDIM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.diffusion import (
    Condition,
    FlowSchedule,
    GuidedDenoiser,
    Prediction,
    VPSchedule,
    dpm_solver_pp_2m,
    euler,
    timesteps,
)
from diffdistill.errors import UserError
from diffdistill.models.teacher import Teacher


def check_sampler(teacher: Teacher, steps: int, name: str) -> None:
    """Refuse what `sampled` cannot do.

    Args:
        teacher: the teacher.
        steps: number of steps.
        name: of the setting, for errors.

    Raises:
        UserError: the schedule has not so many times, or noise is predicted where there is no signal.
    """
    schedule = teacher.schedule
    try:
        times = timesteps(schedule, steps)
    except ValueError as error:
        raise UserError(f"{name} is {steps}: {error}") from error
    if times[-1] < 0:  # of a few numbers, such as 61 of 1000, the grid has one time too many
        raise UserError(f"{name} is {steps}, whose grid ends below time 0; take one step more or less")
    if isinstance(schedule, VPSchedule) and teacher.prediction_type == "eps" and not schedule.alpha(times[0]) > 0:
        raise UserError(
            f"{name}: the teacher predicts noise, and there is no signal at its last time, so it cannot be sampled "
            "from there"
        )


@torch.no_grad()
def sampled(teacher: Teacher, z: Tensor, cond: Condition, null: Condition, steps: int, guidance_scale: float) -> Tensor:
    """x0 that the guided teacher makes of noise z of shape (B, C, h, w), of the same shape.

    Args:
        teacher: the teacher; if adapters are on its network, they should be off.
        z: noise at the last time.
        cond: the condition.
        null: the condition of the empty prompt.
        steps: number of steps.
        guidance_scale: the guidance; 1 is none.
    """
    score, schedule = GuidedDenoiser(teacher.denoiser(), null, guidance_scale), teacher.schedule

    def predict(x: Tensor, t: Tensor) -> Prediction:
        return score(x, t, cond)

    sampler = euler if isinstance(schedule, FlowSchedule) else dpm_solver_pp_2m
    return sampler(predict, z, schedule, steps)
