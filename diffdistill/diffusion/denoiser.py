"""A network with its schedule and its kind of prediction: all that a score model is."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .condition import Condition, expand
from .prediction import Prediction, PredictionType, check_prediction_type
from .schedule import Schedule, broadcast

Network = Callable[[Tensor, Tensor, Condition], Tensor]


class ScoreModel(Protocol):
    """What is called like a `Denoiser`: an exact teacher, a guided or a wrapped network."""

    @property
    def schedule(self) -> Schedule:
        """The process it judges."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, /) -> Prediction:
        """Denoise x_t of shape (B, ...) at t of shape (B,)."""


class Denoiser:
    """Hides whether a network is a UNet or a transformer, latent or pixel, eps-, v-, x0- or flow-trained.

        x_t ----------------------------+------------> x_t ---------+
        t ---> schedule.network_time ---+---> network ---> value ---+---> Prediction: x0, eps, v, flow, score
        cond ---------------------------+   schedule.alpha, sigma --+

    Args:
        network: (x_t, network_time, cond) to a tensor of x_t's shape.
        schedule: the process that the network was trained on.
        prediction_type: what it was trained to predict.

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

        The network is told a time that is not an integer in float32 (float64 where x_t is float64): bfloat16
        cannot tell 999 from 1000. Its output is cast to x_t's dtype.

        Args:
            x_t: noisy samples of shape (B, ...).
            t: times of shape (B,), or one for all of shape ().
            cond: condition of the batch. The network gets B rows of it.

        Raises:
            ValueError: a shape of t, of the condition or of the network's output that does not fit.
        """
        if t.dim() == 0:
            t = t.expand(len(x_t))
        if t.shape != (len(x_t),):
            raise ValueError(f"t has shape {tuple(t.shape)}; one time a sample is ({len(x_t)},)")
        alpha, sigma = (broadcast(level(t), x_t) for level in (self.schedule.alpha, self.schedule.sigma))
        time = self.schedule.network_time(t)
        if time.is_floating_point():
            time = time.to(torch.promote_types(x_t.dtype, torch.float32))
        value = self.network(x_t, time, expand(cond, len(x_t)))
        if value.shape != x_t.shape:
            raise ValueError(f"the network returned shape {tuple(value.shape)} for {tuple(x_t.shape)}")
        return Prediction(x_t, value.to(x_t.dtype), self.prediction_type, alpha, sigma)
