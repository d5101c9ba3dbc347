"""A student as a stock diffusers pipeline, so that one step needs no code of ours.

The pipeline starts from noise of unit variance and asks for one step. With trailing spacing on a schedule that is
cut after T*, that step is at T*, and its result is the x0-prediction.

A student of several steps samples x0 and noise in turn (`distill.few_step_sample`), which LCMScheduler does with two
settings. With `original_inference_steps` as many as the schedule has times, k steps visit `few_step_times`. With a
large `timestep_scaling` its boundary coefficients round to c_skip = 0 and c_out = 1, so a step's result is the
x0-prediction itself. One step is the first of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .portable_text import make_portable
from .stock_pipeline import stock_pipeline
from .teacher import Teacher

NO_BOUNDARY = 1e10  # c_skip = 0.25 / (1e10 t)^2 is lost beside any sample, and c_out is 1 to the last bit
DIFFUSERS_PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a StableDiffusionPipeline so that diffusers loads it with transformers 4 and with transformers 5."""
    pipeline.save_pretrained(folder)
    make_portable(pipeline.tokenizer, folder)


def export_parts(teacher: Teacher, unet: Any, scheduler: Any, folder: Path) -> None:
    """Write a StableDiffusionPipeline of a student's UNet and scheduler and the teacher's other parts."""
    p = teacher.pipeline
    save_pipeline(stock_pipeline(unet, p.vae, p.text_encoder, p.tokenizer, scheduler), folder)


def one_step_scheduler(teacher: Teacher, t_star: int) -> Any:
    """A DDIMScheduler whose only trailing step is t_star; the betas beyond it are cut off."""
    from diffusers import DDIMScheduler

    betas = teacher.schedule.truncated(t_star).betas
    return DDIMScheduler(
        num_train_timesteps=t_star + 1,
        trained_betas=[float(b) for b in betas],
        prediction_type=DIFFUSERS_PREDICTION[teacher.prediction_type],
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def halve(folder: Path) -> None:
    """Rewrite the UNet's and the VAE's weights under a pipeline folder as float16; diffusers loads them as float32.

    The text encoder stays as it is: transformers would keep it in float16, beside a float32 UNet.
    """
    from safetensors.torch import load_file, save_file

    for path in [path for part in ("unet", "vae") for path in sorted((folder / part).glob("*.safetensors"))]:
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def export_one_step(teacher: Teacher, unet: Any, t_star: int, folder: Path) -> None:
    """Write a StableDiffusionPipeline: the student's UNet, the teacher's VAE and text encoder, a cut scheduler."""
    export_parts(teacher, unet, one_step_scheduler(teacher, t_star), folder)


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
