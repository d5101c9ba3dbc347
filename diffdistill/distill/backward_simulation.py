"""Few-step generators: sampling by renoising, and the inputs that they are trained on.

A generator of k steps knows k times t_1 > ... > t_k. From x_{t_1} = z, noise alone,

    x0 = G(x_{t_i}, t_i),    x_{t_{i+1}} = alpha x0 + sigma eps_i at t_{i+1},    i = 1 ... k

and the last x0 is the sample. Trained on noised data it would meet, from t_2 on, other inputs than when it samples.
Backward simulation (DMD2, arXiv 2405.14867, section 4.5) makes each sample's input by the generator's own steps:

    z --G, no graph--> x0 --noise--> x_{t_2} --G, no graph--> ... x_{t_i} --G, with a graph--> x0 --> loss

so the gradient reaches the last of these steps only.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, check_condition, take_rows


def few_step_times(num_timesteps: int, steps: int) -> list[int]:
    """T - 1 - floor(i T / k) for i = 0 ... k - 1: k times spread over T, from the last one down.

    The times that diffusers' LCMScheduler visits when its `original_inference_steps` is T (to the rounding of its
    float64).

    Raises:
        ValueError: not 1 <= steps <= num_timesteps.

    >>> few_step_times(1000, 4)
    [999, 749, 499, 249]
    """
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"{steps} steps in a schedule of {num_timesteps}; there are 1 ... {num_timesteps}")
    return [num_timesteps - 1 - math.floor(i * (num_timesteps / steps)) for i in range(steps)]


@torch.no_grad()
def few_step_sample(
    generator: Any, z: Tensor, times: Sequence[int], noises: Sequence[Tensor], cond: Condition
) -> Tensor:
    """The sample after all steps, without a graph.

    Args:
        generator: a `Denoiser`; its x0-prediction is a step.
        z: noise of shape (B, ...), the input at times[0].
        times: k times, descending.
        noises: k - 1 tensors of z's shape, of the renoisings in turn.
        cond: condition of the batch.

    Raises:
        ValueError: not one noise less than times.
    """
    _check(z, times, noises)
    x_t = z
    for i, t in enumerate(times):
        x0 = generator(x_t, torch.full((len(z),), t, device=z.device), cond).x0
        if i + 1 < len(times):
            x_t = _renoise(generator, x0, noises[i], times[i + 1])
    return x0


@torch.no_grad()
def backward_simulation(
    generator: Any, z: Tensor, times: Sequence[int], noises: Sequence[Tensor], cond: Condition, step: Tensor
) -> tuple[Tensor, Tensor]:
    """What each sample's generator is given at its own step, made by its steps before it.

    A step runs on those samples alone that have further to go.

    Args:
        generator, z, times, noises: as of `few_step_sample`.
        cond: condition of the batch.
        step: from 0 to k - 1, which step each sample is trained at; int64 of shape (B,).

    Returns:
        x_t of the shape of z, without a graph, and t of shape (B,), int64.

    Raises:
        ValueError: not one noise less than times, or a wrong shape of step.
    """
    _check(z, times, noises)
    if step.shape != (len(z),):
        raise ValueError(f"step has shape {tuple(step.shape)}; one a sample is ({len(z)},)")
    check_condition(cond, len(z))
    inputs = z.clone()
    for i, t in enumerate(times[:-1]):
        rows = torch.nonzero(step > i).flatten()
        if not len(rows):
            break
        x0 = generator(inputs[rows], torch.full((len(rows),), t, device=z.device), take_rows(cond, rows)).x0
        inputs[rows] = _renoise(generator, x0, noises[i][rows], times[i + 1]).to(inputs.dtype)
    # in some versions of torch autocast keeps weights that it cast without a graph, for the step that is to have one
    torch.clear_autocast_cache()
    return inputs, torch.tensor(list(times), device=z.device)[step]


def _renoise(generator: Any, x0: Tensor, eps: Tensor, t: int) -> Tensor:
    noised: Tensor = generator.schedule.add_noise(x0, eps, torch.full((len(x0),), t, device=x0.device))
    return noised


def _check(z: Tensor, times: Sequence[int], noises: Sequence[Tensor]) -> None:
    if len(noises) != len(times) - 1 or any(eps.shape != z.shape for eps in noises):
        raise ValueError(f"{len(times)} times need {len(times) - 1} noises of shape {tuple(z.shape)}: {len(noises)}")
