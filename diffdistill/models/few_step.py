"""A few-step student as a stock diffusers pipeline.

Its sampler, x0 and noise in turn (`distill.few_step_sample`), is LCMScheduler's with two settings: with
`original_inference_steps` as many as the schedule has times, k steps visit `few_step_times`; with a large
`timestep_scaling` its boundary coefficients round to c_skip = 0 and c_out = 1, so a step's result is the x0-prediction
itself. One step is the first of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .export import DIFFUSERS_PREDICTION, export_parts
from .teacher import Teacher

NO_BOUNDARY = 1e10  # c_skip = 0.25 / (1e10 t)^2 is lost beside any sample, and c_out is 1 to the last bit


def few_step_scheduler(teacher: Teacher, t_star: int) -> Any:
    """An LCMScheduler on the schedule cut after t_star, so that the first step of any number is at t_star."""
    from diffusers import LCMScheduler

    betas = teacher.schedule.truncated(t_star).betas
    return LCMScheduler(
        num_train_timesteps=t_star + 1,
        trained_betas=[float(b) for b in betas],
        prediction_type=DIFFUSERS_PREDICTION[teacher.prediction_type],
        original_inference_steps=t_star + 1,
        timestep_scaling=NO_BOUNDARY,
        steps_offset=1,  # not read by this scheduler, but pipelines warn where it is not 1
        clip_sample=False,
    )


def export_few_steps(teacher: Teacher, unet: Any, t_star: int, folder: Path) -> None:
    """Write a StableDiffusionPipeline: the student's UNet, the teacher's other parts, and the scheduler above."""
    export_parts(teacher, unet, few_step_scheduler(teacher, t_star), folder)
