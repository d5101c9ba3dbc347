"""Variance-preserving schedulers of diffusers, for Stable Diffusion and SDXL: their settings, and those of students.

A student's pipeline starts from noise of unit variance. With trailing spacing on a schedule that is cut after T*, the
one step of DDIMScheduler is at T*, and its result is the x0-prediction.

A student of several steps samples x0 and noise in turn (`distill.few_step_sample`). LCMScheduler does so with two
settings. If `original_inference_steps` is the number of times of the schedule, k steps visit `few_step_times`. If
`timestep_scaling` is large, the boundary coefficients round to c_skip = 0 and c_out = 1, so the result of a step is the
x0-prediction itself. A single step is the first of these steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffdistill.diffusion import PredictionType, VPSchedule, from_diffusers_prediction_type

if TYPE_CHECKING:
    from ..teacher import Teacher

NO_BOUNDARY = 1e10  # c_skip = 0.25 / (1e10 t)^2 vanishes beside any sample, and c_out is 1 to the last bit
DIFFUSERS_PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def process(config: Mapping[str, Any], written: Mapping[str, Any]) -> tuple[VPSchedule, PredictionType]:
    """The schedule and the prediction type, by a scheduler's settings; arguments and errors as in `Family.process`."""
    if "FlowMatch" in str(written.get("_class_name")):
        raise ValueError(f"{written['_class_name']} is not supported; use a variance-preserving scheduler")
    if "beta_schedule" not in written and not written.get("trained_betas"):
        raise ValueError(f"{written.get('_class_name')} has no beta schedule; a variance-preserving scheduler has one")
    if not config.get("trained_betas"):  # if the scheduler cannot be built, its default values are not known
        for key in ("beta_schedule", "beta_start", "beta_end"):
            if key not in config:
                raise ValueError(f"scheduler_config.json has no {key}")
    try:
        kind = from_diffusers_prediction_type(config.get("prediction_type", "epsilon"))
        schedule = VPSchedule.from_config(config)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if kind == "flow":
        raise ValueError("flow prediction on a variance-preserving schedule is not supported")
    return schedule, kind


def one_step_scheduler(teacher: Teacher, time: float | Tensor) -> Any:
    """A DDIMScheduler whose only trailing step is at the time t_star; the betas after t_star are cut off.

    Raises:
        ValueError: the time is none of the schedule's.
    """
    from diffusers import DDIMScheduler

    t_star = _whole(teacher, time)
    return DDIMScheduler(
        num_train_timesteps=t_star + 1,
        trained_betas=_betas(teacher, t_star),
        prediction_type=DIFFUSERS_PREDICTION[teacher.prediction_type],
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def few_step_scheduler(teacher: Teacher, time: float | Tensor) -> Any:
    """An LCMScheduler on the schedule cut after the time t_star, so that the first of any number of steps is there.

    Raises:
        ValueError: the time is none of the schedule's.
    """
    from diffusers import LCMScheduler

    t_star = _whole(teacher, time)
    return LCMScheduler(
        num_train_timesteps=t_star + 1,
        trained_betas=_betas(teacher, t_star),
        prediction_type=DIFFUSERS_PREDICTION[teacher.prediction_type],
        original_inference_steps=t_star + 1,
        timestep_scaling=NO_BOUNDARY,
        steps_offset=1,  # this scheduler does not read it, but pipelines warn if it is not 1
        clip_sample=False,
    )


def consistency_scheduler(teacher: Teacher, grid: int, boundary_scale: float) -> Any:
    """An LCMScheduler on the whole schedule, for a consistency model.

    Args:
        teacher: the teacher, whose schedule it is.
        grid: number of times in training; sampling steps are taken from these.
        boundary_scale: tau = boundary_scale * t in c_skip and c_out.
    """
    from diffusers import LCMScheduler

    return LCMScheduler(
        num_train_timesteps=_schedule(teacher).num_train_timesteps,
        trained_betas=_betas(teacher, _schedule(teacher).last),
        prediction_type=DIFFUSERS_PREDICTION[teacher.prediction_type],
        original_inference_steps=grid,
        timestep_scaling=boundary_scale,
        steps_offset=1,  # this scheduler does not read it, but pipelines warn if it is not 1
        clip_sample=False,
    )


def _schedule(teacher: Teacher) -> VPSchedule:
    if not isinstance(teacher.schedule, VPSchedule):
        raise ValueError(f"teacher {teacher.source} has no variance-preserving schedule")
    return teacher.schedule


def _whole(teacher: Teacher, time: float | Tensor) -> int:
    """The time as an index of the teacher's schedule; a fraction of the schedule is none, nor is a time between two."""
    value, last = float(time), _schedule(teacher).last
    if not (value.is_integer() and 0 <= value <= last):
        raise ValueError(
            f"the time is {value:g}; the times of this teacher's schedule are the whole numbers from 0 to {last}"
        )
    return int(value)


def _betas(teacher: Teacher, t_star: int) -> list[float]:
    return [float(beta) for beta in _schedule(teacher).truncated(t_star).betas]
