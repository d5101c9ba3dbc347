"""Samplers that agree step for step with diffusers' schedulers, for any kind of prediction.

    ddim             DDIMScheduler
    euler            EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
    dpm_solver_pp_2m DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2)

Each takes `predict(x_t, t_batch) -> Prediction` (a score model with its condition and guidance bound) and a starting x
of shape (B, ...): x_T = alpha_T x0 + sigma_T eps, which is standard normal noise where alpha_T is 0 or small. `steps`
is the number of steps, or the times themselves, descending. Steps keep the graph: use `torch.no_grad()` to sample. A
callback is called after each step with (index, t, x after the step, the prediction at t).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .prediction import Prediction
from .schedule import FlowSchedule, Schedule, VPSchedule, broadcast, linear_combination

Predict = Callable[[Tensor, Tensor], Prediction]
Callback = Callable[[int, float, Tensor, Prediction], None]
Generators = torch.Generator | Sequence[torch.Generator] | None  # one generator for the batch, or one per sample
Spacing = Literal["trailing", "leading", "linspace"]
Steps = int | Sequence[int] | Sequence[float] | Tensor


def timesteps(schedule: Schedule, n: int, spacing: Spacing = "trailing", steps_offset: int = 0) -> Tensor:
    """The times that n sampling steps start from, descending, on the CPU.

    Discrete: int64, exactly those of DDIMScheduler (arXiv 2305.08891, table 2). "trailing" starts at T - 1 and is right
    for few steps. "leading" never starts at the last time; "linspace" is meant for n > 1. For some n the rounding of a
    float makes "trailing" one longer, in diffusers as here.

    Flow: float64, those of FlowMatchEulerDiscreteScheduler: evenly from 1 to the shifted 1/T, then shifted. So the
    smallest time is shifted twice. `spacing` does not apply.

    Args:
        schedule: the process.
        n: the number of steps.
        spacing: the grid.
        steps_offset: added to "leading" times.

    Raises:
        ValueError: n outside 1 ... T, an unknown spacing, or an offset for a flow.
        TypeError: a schedule without a grid.
    """
    if spacing not in ("trailing", "leading", "linspace"):
        raise ValueError(f"unknown spacing {spacing!r}; there are: trailing, leading, linspace")
    if isinstance(schedule, FlowSchedule):
        if n < 1 or steps_offset:
            raise ValueError(f"n = {n}, steps_offset = {steps_offset}: need n >= 1 and no offset for a flow")
        least = schedule.shifted(torch.tensor(1 / schedule.num_train_timesteps, dtype=torch.float64)).item()
        return schedule.shifted(torch.linspace(1, least, n, dtype=torch.float64))
    if not isinstance(schedule, VPSchedule):
        raise TypeError(f"no sampling grid for a {type(schedule).__name__}: give the times themselves")
    total = schedule.num_train_timesteps
    if not 1 <= n <= total:
        raise ValueError(f"n = {n} sampling steps; there are 1 ... {total}")
    if spacing == "leading":
        times = [i * (total // n) + steps_offset for i in reversed(range(n))]
    elif spacing == "linspace":
        width = (total - 1) / max(n - 1, 1)
        times = [round(i * width) for i in reversed(range(n))]
    else:
        width = total / n
        slope = (total - width) - total  # as numpy's arange has it: ties must round alike
        times = [round(total + i * slope) - 1 for i in range(math.ceil(total / width))]
    return torch.tensor(times, dtype=torch.int64)


def ddim_step(prediction: Prediction, schedule: Schedule, t: Tensor) -> Tensor:
    """alpha_t x0 + sigma_t eps: the point at t of the path that a prediction implies, t before or after its own time.

    It is a DDIM step with eta 0 in which every sample has its own time. `ddim` is the sampler.

    Args:
        prediction: the prediction at (x, its own time).
        schedule: the process.
        t: times of shape (B,); -1 is the end of a discrete path.
    """
    alpha, sigma = (broadcast(level, prediction.x_t) for level in levels_or_end(schedule, t))
    return linear_combination(alpha, prediction.x0, sigma, prediction.eps)


def levels_or_end(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t of any shape, float64; 1 and 0 where t is below 0."""
    over, inside = t < 0, t.clamp_min(0)
    return torch.where(over, 1.0, schedule.alpha(inside)), torch.where(over, 0.0, schedule.sigma(inside))


def ddim(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Steps,
    *,
    eta: float = 0.0,
    generator: Generators = None,
    final_alpha_one: bool = True,
    spacing: Spacing = "trailing",
    steps_offset: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (arXiv 2010.02502, eq. 12 and 16): x' = alpha' x0 + sqrt(sigma'^2 - std^2) eps + std z.

    Where `steps` is a number n of discrete steps, each goes to t - T // n, as in DDIMScheduler, also where the next
    time of the grid is another ("linspace", and n that do not divide T). Times that are given are visited in turn.

    Args:
        predict, x, schedule, steps, callback: see the module.
        eta: 0 is deterministic, 1 the ancestral sampler (DDPM).
        generator: generator of the noise z, one for the batch or one per sample; read only where eta > 0.
        final_alpha_one: whether to end at alpha = 1, or at time 0 (`set_alpha_to_one` of diffusers).
        spacing, steps_offset: as for `timesteps`.

    Returns:
        The sample, of the shape and dtype of x.

    Raises:
        ValueError: as for `timesteps`; also an eps-prediction where alpha = 0, or another number of generators than
            samples.
    """
    times = _times(schedule, steps, spacing, steps_offset)
    before = times[1:] + [-1]
    if isinstance(schedule, VPSchedule) and isinstance(steps, int):
        before = [t - schedule.num_train_timesteps // steps for t in times]
    end = (1.0, 0.0) if final_alpha_one else _levels(schedule, 0)
    for index, (t, t_before) in enumerate(zip(times, before, strict=True)):
        alpha, sigma = _levels(schedule, t)
        alpha_before, sigma_before = _levels(schedule, t_before) if t_before >= 0 else end
        prediction = _predict(predict, x, t, alpha)
        std = 0.0
        if eta > 0 and sigma > 0:
            variance = sigma**2 - (alpha / alpha_before * sigma_before) ** 2
            std = eta * sigma_before / sigma * max(variance, 0.0) ** 0.5
        noise_level = max(sigma_before**2 - std**2, 0.0) ** 0.5
        x = alpha_before * prediction.x0 + noise_level * prediction.eps
        if eta > 0:
            x = x + std * _noise_like(x, generator)
        if callback is not None:
            callback(index, t, x, prediction)
    return x


def euler(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Steps,
    *,
    spacing: Spacing = "trailing",
    steps_offset: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method on the probability flow ODE, down to alpha = 1.

    Flow: x' = x + (t' - t) flow. Discrete: d(x / alpha) / d(sigma / alpha) = eps (EDM, arXiv 2206.00364), so one Euler
    step is x' = alpha' x0 + sigma' eps, which is DDIM that goes to the next time of the grid; in this form it can also
    start at alpha = 0. EulerDiscreteScheduler keeps x / alpha where this keeps x; with "trailing" it starts from noise
    times sigma / alpha, that is x = sigma_T eps. "linspace" here is that of DDIM, rounded; there it is not.

    Arguments, result and errors are those of `ddim`.
    """
    times = _times(schedule, steps, spacing, steps_offset)
    for index, t in enumerate(times):
        t_next = times[index + 1] if index + 1 < len(times) else None
        prediction = _predict(predict, x, t, _levels(schedule, t)[0])
        if isinstance(schedule, FlowSchedule):
            x = x + ((t_next or 0.0) - t) * prediction.flow
        else:
            alpha, sigma = (1.0, 0.0) if t_next is None else _levels(schedule, t_next)
            x = alpha * prediction.x0 + sigma * prediction.eps
        if callback is not None:
            callback(index, t, x, prediction)
    return x


def dpm_solver_pp_2m(
    predict: Predict,
    x: Tensor,
    schedule: Schedule,
    steps: Steps,
    *,
    spacing: Spacing = "trailing",
    steps_offset: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), midpoint (arXiv 2211.01095, algorithm 2); the first and the last step are of first order.

    With h = lambda' - lambda: x' = (sigma' / sigma) x + alpha' (1 - e^-h) (D0 + D1 / 2), where D0 = x0 at t
    and D1 = (h / h_before) (D0 - D0_before). "leading" and "linspace" are those of n + 1 steps without the last, as in
    DPMSolverMultistepScheduler.

    Arguments, result and errors are those of `ddim`.
    """
    if isinstance(steps, int) and isinstance(schedule, VPSchedule) and spacing != "trailing":
        times = _times(schedule, steps + 1, spacing, steps_offset)[:-1]
    else:
        times = _times(schedule, steps, spacing, steps_offset)
    levels = [_levels(schedule, t) for t in times] + [(1.0, 0.0)]
    lambdas = [_log(alpha) - _log(sigma) for alpha, sigma in levels]
    x0_before: Tensor | None = None
    for index, t in enumerate(times):
        (alpha, sigma), (alpha_next, sigma_next) = levels[index : index + 2]
        prediction = _predict(predict, x, t, alpha)
        h = lambdas[index + 1] - lambdas[index]
        x0 = direction = prediction.x0
        if x0_before is not None and index + 1 < len(times):
            h_before = lambdas[index] - lambdas[index - 1]  # infinite after alpha = 0: first order
            direction = x0 + 0.5 * h / h_before * (x0 - x0_before)
        x = sigma_next / sigma * x - alpha_next * math.expm1(-h) * direction
        x0_before = x0
        if callback is not None:
            callback(index, t, x, prediction)
    return x


def _noise_like(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise of the shape of x; with one generator per sample, row i comes from the i-th alone."""
    if generator is None or isinstance(generator, torch.Generator):
        device = x.device if generator is None else generator.device
        return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    if len(generator) != len(x):
        raise ValueError(f"{len(generator)} generators for {len(x)} samples; there must be one per sample")
    rows = [torch.randn(x.shape[1:], generator=g, device=g.device, dtype=x.dtype) for g in generator]
    return torch.stack(rows).to(x.device)


def _predict(predict: Predict, x: Tensor, t: float, alpha: float) -> Prediction:
    dtype = torch.int64 if isinstance(t, int) else torch.float64
    prediction = predict(x, torch.full((len(x),), t, dtype=dtype, device=x.device))
    if alpha == 0 and prediction.kind == "eps":
        raise ValueError(f"x0 cannot be read from eps at t = {t}, where alpha = 0: predict v, x0 or flow")
    return prediction


def _times(schedule: Schedule, steps: Steps, spacing: Spacing, steps_offset: int) -> list[int] | list[float]:
    if isinstance(steps, int):
        return timesteps(schedule, steps, spacing, steps_offset).tolist()
    times = steps.tolist() if isinstance(steps, Tensor) else list(steps)
    if not times or any(after >= t for t, after in pairwise(times)):
        raise ValueError(f"times must descend, and there must be at least one: {times}")
    return [float(t) for t in times] if isinstance(schedule, FlowSchedule) else [int(t) for t in times]


def _levels(schedule: Schedule, t: float) -> tuple[float, float]:
    at = torch.tensor(t, dtype=torch.int64 if isinstance(schedule, VPSchedule) else torch.float64)
    return schedule.alpha(at).item(), schedule.sigma(at).item()


def _log(level: float) -> float:
    return math.log(level) if level > 0 else -math.inf
