"""A student as a stock diffusers pipeline, so that one step needs no code of ours.

The pipeline starts from noise of unit variance and asks for one step. With trailing spacing on a schedule that is
cut after T*, that step is at T*, and its result is the x0-prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .teacher import Teacher


def one_step_scheduler(teacher: Teacher, t_star: int) -> Any:
    """A DDIMScheduler whose only trailing step is t_star; the betas beyond it are cut off."""
    from diffusers import DDIMScheduler

    betas = teacher.schedule.truncated(t_star).betas
    return DDIMScheduler(
        num_train_timesteps=t_star + 1,
        trained_betas=[float(b) for b in betas],
        prediction_type=teacher.pipeline.scheduler.config.get("prediction_type", "epsilon"),
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
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline(
        vae=teacher.pipeline.vae,
        text_encoder=teacher.pipeline.text_encoder,
        tokenizer=teacher.pipeline.tokenizer,
        unet=unet,
        scheduler=one_step_scheduler(teacher, t_star),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
