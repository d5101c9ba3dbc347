"""A student as a stock diffusers pipeline, so that sampling it needs no code of this package.

The pipeline has the student's network, a scheduler that the teacher's family makes (`Family.one_step_scheduler`,
`Family.few_step_scheduler`), and the teacher's other parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.errors import UserError, shown

from .teacher import Teacher


def export_student(teacher: Teacher, network: Any, scheduler: Any, folder: str | Path) -> None:
    """Write the stock pipeline of a student.

    Args:
        teacher: the teacher, whose other parts are written beside the network.
        network: the student's `Backbone` or its diffusers model (`Backbone.inner`).
        scheduler: a scheduler of diffusers.
        folder: where to write; the folder may exist.

    Raises:
        UserError: the network is neither; nothing is written.
    """
    family, folder = teacher.family, Path(folder)
    network = getattr(network, "inner", network)
    if not hasattr(network, "save_pretrained"):  # a `Denoiser` has the network that is meant
        hint = ", which is its .network" if hasattr(network, "network") else ""
        raise UserError(f"the network is {shown(network)}; it must be a Backbone or a diffusers model{hint}")
    encoders: list[Any] = [] if family.casts_embeddings else list(teacher.text_encoders().values())
    dtypes = [encoder.dtype for encoder in encoders]
    try:
        for encoder in encoders:
            encoder.to(network.dtype)
        family.save(family.replaced(teacher.pipeline, network, scheduler), folder)
    finally:
        for encoder, dtype in zip(encoders, dtypes, strict=True):
            encoder.to(dtype)


def export_one_step(teacher: Teacher, network: Any, time: float | Tensor, folder: str | Path) -> None:
    """Write the stock pipeline of a one-step student that takes noise at the time.

    Args:
        teacher, network, folder: as in `export_student`.
        time: in the units of the teacher's schedule, such as `teacher.schedule.last`.

    Raises:
        UserError: as `export_student`.
        ValueError: the time is none of the schedule's, or no stock scheduler starts there.
    """
    export_student(teacher, network, teacher.family.one_step_scheduler(teacher, time), folder)


def export_few_steps(teacher: Teacher, network: Any, time: float | Tensor, steps: int, folder: str | Path) -> None:
    """Write the stock pipeline of a student of several steps that takes noise at the time.

    Args:
        teacher, network, time, folder: as in `export_one_step`.
        steps: number of steps.

    Raises:
        UserError: as `export_student`.
        ValueError: as `export_one_step`.
    """
    export_student(teacher, network, teacher.family.few_step_scheduler(teacher, time, steps), folder)


def halve(folder: Path) -> None:
    """Rewrite the weights of the diffusers networks under a pipeline folder as float16.

    These are the denoising network and the autoencoder, and diffusers loads them as float32. Text encoders stay as they
    are, because transformers would load them as float16, beside a float32 network.
    """
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.glob("*/diffusion_pytorch_model*.safetensors")):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
