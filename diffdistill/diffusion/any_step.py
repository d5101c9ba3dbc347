"""Networks of two times, and sampling with them in any number of steps. Any-step models and their methods use it.

A network of two times predicts an average velocity V(x_t, t, s) from t down to an earlier time s <= t. What it means
for a sample depends on how the network was trained:

    flow matching            s = t        x_t - t V = E[x0 | x_t]
    Self-E                   s <= t       x_t - t V is a clean sample whose noised copy at s is judged
    MeanFlow, shortcut       s <= t       x_t - (t - s) V is the point at s on the same path

A step from t_k to t_{k+1} is x + (t_{k+1} - t_k) V(x, t_k, s_k) for all of them. s_k lies a fraction `target_fraction`
of the way from t_k to t_{k+1}: 0 samples as in flow matching; at 1 the network gets the time at which the step ends.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .condition import Condition
from .denoiser import Denoiser, ScoreModel
from .guidance import cond_and_null
from .prediction import Prediction, combine
from .samplers import Callback, Generators, ddim, euler
from .schedule import FlowSchedule, broadcast

TwoTimeNetwork = Callable[[Tensor, Tensor, Tensor, Condition], Tensor]
TwoTimeModel = Callable[[Tensor, Tensor, Tensor, Condition], Prediction]  # called like a `TwoTimeDenoiser`


class TwoTimeDenoiser:
    """A network (x_t, time, earlier_time, cond) -> velocity, on the straight path.

        x_t ----------------------------+-----------> x_t ---------+
        t, s -> schedule.network_time --+--> network ---> V -------+---> Prediction of kind "flow"
        cond ---------------------------+

    Args:
        network: it gets both times in the schedule's units for networks (1000 t), as that of a `Denoiser` does.
        schedule: the straight path.
    """

    def __init__(self, network: TwoTimeNetwork, schedule: FlowSchedule) -> None:
        self.network = network
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition) -> Prediction:
        """Predict at (x_t, t) for the earlier time s.

        Args:
            x_t: noisy samples of shape (B, ...).
            t: times of shape (B,), or of another shape that `expand_time` takes.
            s: earlier times, of the shape of t or one for all.
            cond: condition of the batch.

        Raises:
            ValueError: a shape that does not fit, or a time outside [0, 1] (checked on the CPU).
        """
        return self.at(s)(x_t, t, cond)

    def at(self, s: Tensor) -> Denoiser:
        """The score model of one time that has this s for every t; where guidance doubles the batch, s is doubled."""

        def network(x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
            if s.dim() == 0:
                earlier = s.expand(time.shape)
            else:
                earlier = s.repeat(len(x_t) // max(1, len(s)), *[1] * (s.dim() - 1))
            if earlier.shape != time.shape:
                raise ValueError(f"s has shape {tuple(s.shape)} for times of shape {tuple(time.shape)}")
            return self.network(x_t, time, self.schedule.network_time(earlier).to(time), cond)

        return Denoiser(network, self.schedule, "flow")

    @property
    def instantaneous(self) -> Denoiser:
        """The score model of one time, with s = t: that of flow matching."""

        def network(x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
            return self.network(x_t, time, time, cond)

        return Denoiser(network, self.schedule, "flow")


def preserve_energy(guided: Prediction, cond: Prediction) -> Prediction:
    """The guided prediction with each sample's x0 scaled to the energy of the conditional one.

    x0 sqrt(|x0_cond|^2 / |x0|^2), with one factor per sample (EP-CFG, arXiv 2412.09966, without its robust variant;
    Self-E, arXiv 2512.22374, applies it to x0).

    Args:
        guided, cond: predictions at one (x_t, t), read as x0.

    Returns:
        A prediction of kind "x0"; other kinds are read from it where sigma > 0.
    """
    x0 = guided.x0
    wanted, found = _norm(cond.x0), _norm(x0)
    ratio = torch.where(found > 0, wanted / torch.where(found > 0, found, 1), 1.0)
    value = (broadcast(ratio, x0) * x0.to(ratio.dtype)).to(x0.dtype)
    return Prediction(guided.x_t, value, "x0", guided.alpha, guided.sigma)


def guided_any_step(
    denoiser: TwoTimeDenoiser,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Condition,
    null: Condition,
    scale: float | Tensor,
    energy_preserving: bool = True,
) -> Prediction:
    """The guided prediction of a network of two times. Arguments and errors are those of `guided`.

    Args:
        energy_preserving: rescale by `preserve_energy`. Scale 1 is the conditional pass alone either way.
    """
    model: ScoreModel = denoiser.at(s)
    if not isinstance(scale, Tensor) and scale == 1:
        return model(x_t, t, cond)
    for_cond, for_null = cond_and_null(model, x_t, t, cond, null)
    prediction = combine(for_null, for_cond, scale)
    return preserve_energy(prediction, for_cond) if energy_preserving else prediction


def any_step_times(schedule: FlowSchedule, n: int) -> Tensor:
    """The n times that steps start from: evenly from 1 towards 0, where the last step ends, then shifted.

    Returns:
        A float64 tensor of shape (n,).

    Raises:
        ValueError: n below 1.

    >>> any_step_times(FlowSchedule(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    if n < 1:
        raise ValueError(f"n = {n} sampling steps; there must be at least 1")
    return schedule.shifted(torch.linspace(1, 0, n + 1, dtype=torch.float64)[:-1])


def any_step(
    predict: Callable[[Tensor, Tensor, Tensor], Prediction],
    x: Tensor,
    schedule: FlowSchedule,
    steps: int | Sequence[float] | Tensor,
    *,
    target_fraction: float = 1.0,
    eta: float = 0.0,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample in any number of steps.

    Args:
        predict: a function (x_t, t, s) to a prediction: a `TwoTimeDenoiser` with its condition and guidance bound.
            Times are float64, of shape (B,).
        x: noise of shape (B, ...), at the first time.
        schedule: the straight path.
        steps: how many steps (`any_step_times`), or the times that they start from, descending. The last step ends at
            0, which is not among them.
        target_fraction: s_k = t_k + target_fraction (t_{k+1} - t_k), but not below 0. For a one-step sample of Self-E
            0.5 is best; above 1 the network gets an interval longer than the step.
        eta: from 0 to 1. 0 is deterministic (Euler's method). Above 0 it is DDIM's update with that share of the
            ancestral noise: at 1, x_{k+1} is drawn from the posterior given the predicted x0, and the first step
            replaces all noise.
        generator: generator of that noise, one for the batch or one per sample; read only where eta > 0.
        callback: as for the samplers.

    Returns:
        The sample, of the shape and dtype of x.

    Raises:
        ValueError: target_fraction below 0 or not finite, eta outside [0, 1], no step, or times that do not descend.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}; it is a share of the ancestral noise, from 0 to 1")
    if not 0 <= target_fraction < math.inf:
        raise ValueError(f"target_fraction = {target_fraction}; it is a fraction of the step, a number from 0")
    times = any_step_times(schedule, steps) if isinstance(steps, int) else torch.as_tensor(steps, dtype=torch.float64)
    ends = torch.cat([times[1:], times.new_zeros(1)])
    targets = iter(torch.lerp(times, ends, target_fraction).clamp(min=0).tolist())

    def at_s(x_t: Tensor, t: Tensor) -> Prediction:
        return predict(x_t, t, torch.full_like(t, next(targets)))

    if eta == 0:
        return euler(at_s, x, schedule, times, callback=callback)
    return ddim(at_s, x, schedule, times, eta=eta, generator=generator, callback=callback)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B,), in float32 at least."""
    return torch.linalg.vector_norm(x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1), dim=1)
