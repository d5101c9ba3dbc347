"""Progressive distillation (arXiv 2202.00512, algorithm 2): one DDIM step of the student is two of its predecessor.

    x_t --predecessor, DDIM--> x_t' --predecessor, DDIM--> x_t''          t > t' > t''
    x_t ------------ one DDIM step, with x0 = x-tilde ---> x_t''          the student learns to predict x-tilde

Then the student becomes the predecessor, the number of steps halves, and so on:

    stage      0              1              2
    steps      N -> N/2       N/2 -> N/4     N/4 -> N/8

Notable:
- a DDIM step is linear in alpha / sigma, so x-tilde is a weighted mean of the predecessor's two predictions,

      x-tilde = (1 - w) x0(x_t', t') + w x0(x_t, t),      w = (r_t' - r_t) / (r_t'' - r_t),      r = alpha / sigma

  which is algorithm 2's (x_t'' - (sigma''/sigma) x_t) / (alpha'' - (sigma''/sigma) alpha) without its difference of
  near-equal numbers. In a step that ends in data, r'' is infinite, w = 0, and x-tilde is the second prediction;
- the time -1 is the end of a discrete schedule, alpha = 1 and sigma = 0, as in DDIM samplers;
- x-tilde depends on x_t alone, so x_t may come from anywhere that the student meets when it samples. `ddim_path` takes
  x_t from the student's own path from noise, and needs no data; the paper takes noised data.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from diffdistill.diffusion import (
    Condition,
    ScoreModel,
    broadcast,
    check_condition,
    ddim_step,
    guided,
    levels_or_end,
    linear_combination,
    take_rows,
)

from .tables import look_up

ProgressiveWeight = Callable[[Tensor, Tensor], Tensor]

# name -> factor on (x0 - x-tilde)^2 as a function of alpha and sigma; section 4 of the paper
PROGRESSIVE_WEIGHTS: dict[str, ProgressiveWeight] = {
    "x0": lambda alpha, sigma: torch.ones_like(alpha),
    "truncated_snr": lambda alpha, sigma: (alpha / sigma).square().clamp_min(1),  # max of the errors in x0 and in noise
    "snr_plus_one": lambda alpha, sigma: 1 + (alpha / sigma).square(),  # the error in v
}


def halvings(first: int, last: int) -> list[int]:
    """The number of the student's steps at each stage, from first / 2 down to last.

    Raises:
        ValueError: `first` is not `last` times 2, 4, 8, ...

    >>> halvings(8, 1)
    [4, 2, 1]
    """
    stages, steps = [], first
    while steps > last and steps % 2 == 0:
        steps //= 2
        stages.append(steps)
    if last < 1 or not stages or steps != last:
        raise ValueError(f"{first} steps halved do not come to {last}; they must be 2, 4, 8, ... times as many")
    return stages


def stage_at(progress: float, shares: Sequence[float]) -> tuple[int, float]:
    """The stage at this point of a run, and the share of that stage that is done, in [0, 1].

    Args:
        progress: share of the run that is done, from 0 to 1.
        shares: the lengths of the stages, relative to each other; above 0.

    >>> stage_at(0.5, [1, 2, 1])
    (1, 0.5)
    """
    ends = [end / sum(shares) for end in accumulate(shares)]
    stage = min(sum(progress >= end for end in ends), len(ends) - 1)
    start = ends[stage - 1] if stage else 0.0
    return stage, min((progress - start) / (ends[stage] - start), 1.0)


def halving_grid(t_star: int, steps: int) -> list[int]:
    """The steps + 1 times of the finest sampler, from t_star to -1; every second one is a time of the next sampler.

    Where the steps of a sampler divide t_star + 1, its times are the trailing times of diffusers.

    Raises:
        ValueError: not 1 <= steps <= t_star + 1.

    >>> halving_grid(999, 4), halving_grid(999, 8)[::2]
    ([999, 749, 499, 249, -1], [999, 749, 499, 249, -1])
    """
    if not 1 <= steps <= t_star + 1:
        raise ValueError(f"{steps} steps from time {t_star}; there are 1 to {t_star + 1}")
    return [(2 * k * (t_star + 1) + steps) // (2 * steps) - 1 for k in range(steps, -1, -1)]


@torch.no_grad()
def ddim_path(student: ScoreModel, z: Tensor, times: Sequence[int], cond: Condition, place: Tensor) -> Tensor:
    """x at times[place] on the student's own DDIM path from noise, without a graph.

    A step runs only on those samples that have further steps to take.

    Args:
        student: the score model in training.
        z: noise of shape (B, ...), at times[0].
        times: descending times, at least as many as are visited.
        cond: condition of the batch.
        place: the position in `times` at which each sample stops, int64 of shape (B,).
    """
    check_condition(cond, len(z))
    x = z.clone()
    for i in range(int(place.max())):
        rows = (place > i).nonzero().flatten()
        t, s = (torch.full((len(rows),), times[k], device=z.device) for k in (i, i + 1))
        prediction = student(x[rows], t, take_rows(cond, rows))
        x[rows] = ddim_step(prediction, student.schedule, s).to(x.dtype)
    # in some versions of torch, autocast keeps the weights that it has cast without a graph, for the step with a graph
    torch.clear_autocast_cache()
    return x


@torch.no_grad()
def two_step_target(
    predecessor: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    middle: Tensor,
    end: Tensor,
    cond: Condition,
    null: Condition,
    guidance_scale: float | Tensor,
) -> Tensor:
    """x-tilde of two DDIM steps of the predecessor, without a graph.

    Args:
        predecessor: a score model.
        x_t: tensors of shape (B, ...).
        t, middle, end: descending times of shape (B,); `end` may be -1.
        cond, null, guidance_scale: of both steps, as for `guided`; the scale is 1 once the predecessor has learnt it.

    Returns:
        Tensor of shape (B, ...).

    Raises:
        ValueError: times that do not descend (checked on the CPU only).
    """
    if t.device.type == "cpu" and not bool(((end < middle) & (middle < t)).all()):
        raise ValueError(f"times must descend: {t.tolist()}, {middle.tolist()}, {end.tolist()}")
    schedule = predecessor.schedule
    first = guided(predecessor, x_t, t, cond, null, guidance_scale)
    x_middle = ddim_step(first, schedule, middle)
    second = guided(predecessor, x_middle, middle, cond, null, guidance_scale)
    (alpha, sigma), (alpha1, sigma1), (alpha2, sigma2) = (levels_or_end(schedule, time) for time in (t, middle, end))
    w = sigma2 * (alpha1 * sigma - alpha * sigma1) / (sigma1 * (alpha2 * sigma - alpha * sigma2))
    w = broadcast(w, x_t)
    return linear_combination(1 - w, second.x0, w, first.x0)


def progressive_loss(
    student: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    target: Tensor,
    cond: Condition,
    weight: str | ProgressiveWeight = "truncated_snr",
) -> Tensor:
    """w (x0(x_t, t) - target)^2, the mean over all elements.

    Args:
        student: the score model in training; the gradient goes into its network.
        x_t: tensors of shape (B, ...), used as constants.
        t: times of shape (B,).
        target: x-tilde of `two_step_target`, of x_t's shape, used as a constant.
        cond: condition of the batch.
        weight: a name in `PROGRESSIVE_WEIGHTS`, or a function of alpha and sigma.

    Returns:
        A scalar, float32 at least.

    Raises:
        ValueError: an unknown weight, shapes that differ, or a condition of another number of rows.
    """
    weigh = look_up(PROGRESSIVE_WEIGHTS, weight, "weight")
    if target.shape != x_t.shape:
        raise ValueError(f"the target has shape {tuple(target.shape)}, x_t {tuple(x_t.shape)}; they must be equal")
    check_condition(cond, len(x_t))
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    error = student(x_t.detach(), t, cond).x0.to(dtype) - target.detach().to(dtype)
    factor = weigh(student.schedule.alpha(t), student.schedule.sigma(t))
    return (broadcast(factor, error).to(dtype) * error.square()).mean()
