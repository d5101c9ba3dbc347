"""Score models: a network with its schedule and its prediction type, called as `model(x_t, t, cond)`.

Guidance, the samplers' callers, all losses and all methods call score models by this interface. `Denoiser` makes one of
a network; `GaussianTeacher`, `MixtureTeacher` and `GuidedDenoiser` are others.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .condition import Condition, expand
from .prediction import Prediction, PredictionType, check_prediction_type
from .schedule import Schedule, broadcast

Network = Callable[[Tensor, Tensor, Condition], Tensor]


class ScoreModel(Protocol):
    """The interface of a score model. A class of your own needs a schedule and a call, and inherits nothing."""

    @property
    def schedule(self) -> Schedule:
        """The diffusion process that the model was trained on."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, /) -> Prediction:
        """Denoise x_t of shape (B, ...) at times t of shape (B,) under a condition of the batch."""


class Denoiser:
    """A score model made of a network, whatever its architecture, its space and its prediction type.

        x_t ----------------------------+------------> x_t ---------+
        t ---> schedule.network_time ---+---> network ---> value ---+---> Prediction: x0, eps, v, flow, score
        cond ---------------------------+   schedule.alpha, sigma --+

    Args:
        network: a function (x_t, network_time, cond) to a tensor of the shape of x_t.
        schedule: the process that the network was trained on.
        prediction_type: what the network was trained to predict.

    Raises:
        ValueError: an unknown prediction type.
    """

    def __init__(self, network: Network, schedule: Schedule, prediction_type: PredictionType) -> None:
        check_prediction_type(prediction_type)
        self.network = network
        self.schedule = schedule
        self.prediction_type: PredictionType = prediction_type

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Denoise.

        The network gets a time that is not an integer in float32 (float64 where x_t is float64), because bfloat16
        does not resolve 999 and 1000. The output of the network is cast to the dtype of x_t.

        Args:
            x_t: noisy samples of shape (B, ...).
            t: times that broadcast as `expand_time` says: one for all samples, one per sample, one per token or pixel.
                The network gets times of the shape that `expand_time` returns.
            cond: condition of the batch. The network gets B rows of it.

        Raises:
            ValueError: a shape of t, of the condition or of the network's output that does not fit.
        """
        t = expand_time(t, x_t)
        alpha, sigma = (broadcast(level(t), x_t) for level in (self.schedule.alpha, self.schedule.sigma))
        time = self.schedule.network_time(t)
        if time.is_floating_point():
            time = time.to(torch.promote_types(x_t.dtype, torch.float32))
        value = self.network(x_t, time, expand(cond, len(x_t)))
        if value.shape != x_t.shape:
            raise ValueError(f"the network returned shape {tuple(value.shape)} for {tuple(x_t.shape)}")
        return Prediction(x_t, value.to(x_t.dtype), self.prediction_type, alpha, sigma)


def expand_time(t: Tensor, x_t: Tensor) -> Tensor:
    """The times of a batch with B rows.

    Dimensions are matched from the first one on, so a time per token of x_t (B, L, D) has shape (B, L), and a time per
    pixel of x_t (B, C, h, w) has shape (B, 1, h, w).

    Args:
        t: times of shape (), for all samples; (B,), one per sample; or with more dimensions, each 1 or that of x_t. A
            first dimension of 1 is shared by all samples.
        x_t: noisy samples of shape (B, ...).

    Returns:
        Times of shape (B,), or of the shape of t with B rows.

    Raises:
        ValueError: a shape that does not broadcast.

    >>> expand_time(torch.tensor(7), torch.zeros(2, 3)).tolist()
    [7, 7]
    """
    if t.dim() == 0:
        return t.expand(len(x_t))
    if t.dim() > x_t.dim() or any(n not in (1, m) for n, m in zip(t.shape, x_t.shape, strict=False)):
        raise ValueError(
            f"t has shape {tuple(t.shape)} for x_t of shape {tuple(x_t.shape)}; it must be (), ({len(x_t)},) or have "
            "more dimensions, each 1 or that of x_t"
        )
    return t.expand(len(x_t), *t.shape[1:])
