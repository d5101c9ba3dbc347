"""Whether a scheduler can take a number of steps, found out by taking them without a network."""

from __future__ import annotations

import copy
from typing import Any

import torch

from diffdistill.errors import UserError

from .pipeline_folder import first_line, quiet


@torch.no_grad()
def check_sampler(scheduler: Any, problem: str, steps: int, channels: int = 4, answers: int = 4) -> None:
    """Go through a sampler's steps on a latent of 2 x 2 with zeros for answers: 0.1 s for a thousand steps.

    The scheduler itself stays as it is.

    Args:
        scheduler: of diffusers, or None.
        problem: why it is None.
        steps: as they are asked of the pipeline.
        channels, answers: of the network's input and prediction.

    Raises:
        UserError: no scheduler, fewer than one step, more than its schedule has times, or whatever the scheduler raises
            on the way; the message names its class.
    """
    if scheduler is None:
        raise UserError(f"this pipeline's scheduler cannot be made, so it cannot sample: {problem}")
    times, name = scheduler.config.num_train_timesteps, type(scheduler).__name__
    if not 1 <= steps <= times:
        raise UserError(f"steps is {steps}; this pipeline's schedule allows 1 to {times}")
    tried, latents = copy.deepcopy(scheduler), torch.zeros(1, channels, 2, 2)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            tried.set_timesteps(steps)
            for t in tried.timesteps:
                if hasattr(tried, "scale_model_input"):  # flow-matching schedulers have none
                    tried.scale_model_input(latents, t)
                latents = tried.step(torch.zeros(1, answers, 2, 2), t, latents, return_dict=False)[0]
        except Exception as error:  # whatever the class raises: an IndexError past its tables, as a rule
            raise UserError(
                f"steps is {steps}, and {name} with this pipeline's settings cannot do that ({first_line(error)}); "
                "ask for another number of steps, or set another scheduler"
                if channels == answers
                else f"the network predicts {answers} channels for {channels}, a learned variance perhaps, which "
                f"{name} with these settings does not take ({first_line(error)})"
            ) from error
