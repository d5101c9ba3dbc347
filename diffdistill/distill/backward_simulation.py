"""Few-step generators: their times, how they sample, and the inputs that they are trained on. DMD2 uses them.

A generator of k steps has k times t_1 > ... > t_k. From x_{t_1} = z, noise alone,

    x0 = G(x_{t_i}, t_i),    x_{t_{i+1}} = alpha x0 + sigma eps_i at t_{i+1},    i = 1 ... k

and the last x0 is the sample. A generator that is trained on noised data meets, from t_2 on, other inputs when it
samples. Backward simulation (DMD2, arXiv 2405.14867, section 4.5) makes each sample's input by the generator's own
steps:

    z --G, no graph--> x0 --noise--> x_{t_2} --G, no graph--> ... x_{t_i} --G, with a graph--> x0 --> loss

so the gradient reaches only the last of these steps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, Schedule, ScoreModel, check_condition, take_rows


def few_step_times(schedule: Schedule, last: float | Tensor, steps: int) -> Tensor:
    """The times of a generator of k steps: evenly spread from `last`, the first of them, downwards.

    Discrete: T - 1 - floor(i T / k) for i = 0 ... k - 1 with T = last + 1, int64. These are the times that diffusers'
    LCMScheduler of T times visits when its `original_inference_steps` is T (to the rounding of its float64).

    Straight path: last (1 - i / k), float64.

    Args:
        schedule: the process.
        last: the time that noise is fed at, in the schedule's own units.
        steps: k.

    Returns:
        A tensor of shape (k,), descending.

    Raises:
        ValueError: a time outside the schedule, k below 1, or more steps than a discrete schedule has times.

    >>> from diffdistill.diffusion import FlowSchedule, VPSchedule
    >>> few_step_times(VPSchedule.from_config({}), 999, 4).tolist()
    [999, 749, 499, 249]
    >>> few_step_times(FlowSchedule(), 1.0, 4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    first = last.item() if isinstance(last, Tensor) else last
    if not 0 <= first <= schedule.last:
        raise ValueError(f"the first step is at time {first}; the schedule's times are from 0 to {schedule.last}")
    if not isinstance(schedule.last, int):
        if steps < 1 or first == 0:
            raise ValueError(f"{steps} steps from time {first} down; there must be 1 or more, from a time above 0")
        return first * (1 - torch.arange(steps, dtype=torch.float64) / steps)
    count = int(first) + 1
    if not 1 <= steps <= count:
        raise ValueError(f"{steps} steps from time {first} down; there are 1 to {count}")
    return torch.tensor([count - 1 - math.floor(i * (count / steps)) for i in range(steps)])


@torch.no_grad()
def few_step_sample(
    generator: ScoreModel, z: Tensor, times: Tensor, noises: Sequence[Tensor], cond: Condition
) -> Tensor:
    """The sample after all steps, without a graph.

    Args:
        generator: a score model; its x0-prediction is one step.
        z: noise of shape (B, ...), the input at times[0].
        times: descending times of shape (k,) (`few_step_times`), in the dtype of the schedule's times.
        noises: k - 1 tensors of the shape of z, one for each renoising.
        cond: condition of the batch.

    Raises:
        ValueError: another number of noises than k - 1, or a condition of another number of rows.
    """
    _check(z, times, noises)
    check_condition(cond, len(z))
    times = times.to(z.device)
    x_t = z
    for i, t in enumerate(times):
        x0 = generator(x_t, t.expand(len(z)), cond).x0
        if i + 1 < len(times):
            x_t = generator.schedule.add_noise(x0, noises[i], times[i + 1].expand(len(z)))
    return x0


@torch.no_grad()
def backward_simulation(
    generator: ScoreModel, z: Tensor, times: Tensor, noises: Sequence[Tensor], cond: Condition, step: Tensor
) -> tuple[Tensor, Tensor]:
    """The input that each sample's generator gets at its own step, made by its steps before.

    A step runs only on those samples that have further steps to take.

    Args:
        generator, z, times, noises, cond: as for `few_step_sample`.
        step: from 0 to k - 1, the step that each sample is trained at; int64 of shape (B,).

    Returns:
        x_t of the shape of z, without a graph, and t of shape (B,), in the dtype of `times`.

    Raises:
        ValueError: another number of noises than k - 1, a wrong shape of `step`, or a condition of another number of
            rows.
    """
    _check(z, times, noises)
    if step.shape != (len(z),):
        raise ValueError(f"step has shape {tuple(step.shape)}; one per sample is ({len(z)},)")
    check_condition(cond, len(z))
    times = times.to(z.device)
    inputs = z.clone()
    for i, t in enumerate(times[:-1]):
        rows = torch.nonzero(step > i).flatten()
        if not len(rows):
            break
        x0 = generator(inputs[rows], t.expand(len(rows)), take_rows(cond, rows)).x0
        noised = generator.schedule.add_noise(x0, noises[i][rows], times[i + 1].expand(len(rows)))
        inputs[rows] = noised.to(inputs.dtype)
    # in some versions of torch, autocast keeps the weights that it has cast without a graph, for the step with a graph
    torch.clear_autocast_cache()
    return inputs, times[step]


def _check(z: Tensor, times: Tensor, noises: Sequence[Tensor]) -> None:
    if len(noises) != len(times) - 1 or any(eps.shape != z.shape for eps in noises):
        raise ValueError(f"{len(times)} times need {len(times) - 1} noises of shape {tuple(z.shape)}: {len(noises)}")
