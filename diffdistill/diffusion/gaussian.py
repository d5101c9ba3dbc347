"""The exact score model of Gaussian data, an oracle for the tests of everything that uses score models."""

from collections.abc import Callable

import torch
from torch import Tensor

from .condition import Condition, check_condition
from .prediction import Prediction, PredictionType, check_prediction_type
from .schedule import Schedule, broadcast


class GaussianTeacher:
    """The exact denoiser for data N(mean, std^2 I), called like a `Denoiser`.

    x_t is Gaussian too, with mean alpha mean and variance s = alpha^2 std^2 + sigma^2, so

        x0  = mean + alpha std^2 (x_t - alpha mean) / s
        eps = sigma (x_t - alpha mean) / s

    It is computed in float64, and it is differentiable in mean and std.

    Args:
        schedule: the process.
        mean: a number, a tensor that broadcasts against x_t, or a function of the condition to such a tensor.
        std: a number or a tensor that broadcasts against x_t; at 0 the data are a single sample.
        kind: the kind of its predictions.
    """

    def __init__(
        self,
        schedule: Schedule,
        mean: float | Tensor | Callable[[Condition], Tensor],
        std: float | Tensor,
        kind: PredictionType = "eps",
    ) -> None:
        check_prediction_type(kind)
        self.schedule = schedule
        self.mean = mean
        self.std = std
        self.prediction_type: PredictionType = kind

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """The exact prediction at x_t of shape (B, ...) and t of shape (B,). ValueError where cond does not fit."""
        check_condition(cond, len(x_t))
        mean = self.mean(cond) if callable(self.mean) else self.mean
        mean, std = (torch.as_tensor(number, dtype=torch.float64, device=x_t.device) for number in (mean, self.std))
        alpha, sigma = (broadcast(level(t), x_t) for level in (self.schedule.alpha, self.schedule.sigma))
        variance = (alpha * std).square() + sigma.square()
        # data of a single sample at sigma = 0: x_t is that sample and holds no noise
        centred = (x_t.double() - alpha * mean) / torch.where(variance == 0, 1.0, variance)
        x0, eps = mean + alpha * std.square() * centred, sigma * centred
        value = {
            "x0": x0,
            "eps": eps,
            "v": alpha * eps - sigma * x0,
            "flow": eps - x0,
        }[self.prediction_type]
        return Prediction(x_t, value.to(x_t.dtype), self.prediction_type, alpha, sigma)
