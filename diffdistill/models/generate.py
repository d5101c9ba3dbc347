"""Pictures from a stock pipeline folder; each picture has its own seed, so batches do not matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .teacher import Teacher, load_teacher


@torch.no_grad()
def generate(
    model: str | Teacher,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 32,
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield batches of pictures, (B, 3, H, W) in [0, 1], in the prompts' order.

    Picture i starts from `torch.Generator().manual_seed(seed + i)`, or from seeds[i] where they are given, as
    `DiffusionPipeline` does when it is given one generator a prompt.

    Raises:
        UserError: no Stable-Diffusion-class pipeline at `model`, or more steps than its schedule has times.
    """
    pipeline = (load_teacher(model) if isinstance(model, str) else model).pipeline
    times = pipeline.scheduler.config.num_train_timesteps
    if not 1 <= steps <= times:
        raise UserError(f"steps is {steps}; this pipeline's schedule allows 1 to {times}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if pipeline.device.type != device:  # asking costs milliseconds even where nothing moves
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for i in range(0, len(prompts), batch_size):
        chunk = list(prompts[i : i + batch_size])
        chosen = range(seed + i, seed + i + len(chunk)) if seeds is None else seeds[i : i + len(chunk)]
        generators = [torch.Generator().manual_seed(s) for s in chosen]
        result = pipeline(
            chunk, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        )
        yield result.images.float().cpu()
