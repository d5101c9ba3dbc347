"""Checks whether a scheduler can take a number of steps, by taking them without a network."""

from __future__ import annotations

import copy
from typing import Any

import torch

from diffdistill.errors import UserError

from .pipeline_folder import first_line, quiet


@torch.no_grad()
def check_sampler(scheduler: Any, problem: str, steps: int, channels: int = 4, answers: int = 4) -> None:
    """Take a sampler's steps on a latent of 2 x 2 with zeros as predictions; a thousand steps take 0.1 s.

    A copy of the scheduler takes them.

    Args:
        scheduler: a scheduler of diffusers, or None.
        problem: the reason why it is None.
        steps: number of steps.
        channels: number of channels of the network's input.
        answers: number of channels of its prediction.

    Raises:
        UserError: there is no scheduler, `steps` is below 1 or above the number of times of its schedule, or the
            scheduler raises an error in a step; the message names its class.
    """
    if scheduler is None:
        raise UserError(f"this pipeline cannot sample, because its scheduler cannot be built: {problem}")
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
        except Exception as error:  # each class raises other errors, most often an IndexError past its tables
            raise UserError(
                f"steps is {steps}, and {name} with this pipeline's settings cannot do that ({first_line(error)}); "
                "ask for another number of steps, or set another scheduler"
                if channels == answers
                else f"the network predicts {answers} channels from {channels}, perhaps with a learned variance, but "
                f"{name} with these settings does not take them ({first_line(error)})"
            ) from error
