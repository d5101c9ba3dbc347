"""A network of a variance-preserving schedule, used on the straight path. The conversion is exact, without training.

Any-step models that start from a Stable-Diffusion-class teacher use it. A point of the straight path is a scaled point
of the variance-preserving process, at the time with the same sigma / alpha:

    x_t = (1 - t) x0 + t eps = n x_vp,    n = sqrt((1 - t)^2 + t^2),    tan(theta) = sigma / alpha = t / (1 - t)

So the network gets x_t / n and the time whose angle is theta, and x0 and eps are read from its output as usual. The
velocity eps - x0 of the straight path is then a(t) x_t + b(t) output; for v-prediction a = (2 t - 1) / n^2 and
b = 1 / n.

Notable:
- the times of a discrete schedule are interpolated between its steps, linearly in theta, which is finite at both ends,
  also at zero terminal SNR, where log(sigma / alpha) is not. At the steps themselves the time is the integer;
- before the first step the network gets the first time, and after the last step the last one. After the last, its
  x0-prediction of x_t / n is taken as x0, as in sampling that starts there from noise of unit variance;
- the velocity is eps - x0 or (x_t - x0) / t, which are equal. The sign of theta - pi / 4 alone decides which of the two
  is computed: each is used at that end where it does not divide by a small number.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .prediction import Prediction, from_diffusers_prediction_type
from .schedule import VPSchedule, broadcast

SETTINGS = ("prediction_type", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas",
            "rescale_betas_zero_snr")  # fmt: skip


class VPOnStraightPath:
    """The inputs of a variance-preserving network for a time of the straight path, and its output as a velocity.

        x_t, t --inputs--> x_vp, time --network--> output --velocity--> eps - x0

    Args:
        config: the configuration of the diffusers scheduler that the network was trained with: the keys that
            `VPSchedule.from_config` reads, and `prediction_type`. Other keys are ignored.

    Attributes:
        settings: those keys with their values, to store with a model.
        schedule, kind: the schedule and the kind of prediction that they mean.

    Raises:
        ValueError: a schedule or prediction type that is not supported, a schedule without a step at more noise than
            signal, or noise prediction on a schedule whose last step holds no signal, where x0 cannot be read.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = {key: config[key] for key in SETTINGS if key in config}
        self.kind = from_diffusers_prediction_type(config.get("prediction_type", "epsilon"))
        if self.kind == "flow":
            raise ValueError("flow prediction on a variance-preserving schedule is not supported")
        self.schedule = VPSchedule.from_config(config)
        steps = torch.arange(self.schedule.num_train_timesteps)
        angles = torch.atan2(self.schedule.sigma(steps), self.schedule.alpha(steps))
        if not bool((angles.diff() > 0).all()) or not angles[-1] > math.pi / 4:
            raise ValueError("the schedule's noise must rise at every step, to more than there is signal")
        if self.kind == "eps" and not self.schedule.alpha(steps[-1]) > 0:
            raise ValueError("the network predicts noise and its last time holds no signal: x0 cannot be read there")
        self.first, self.last = angles[0].item(), angles[-1].item()  # theta at the ends
        self._angles: dict[torch.device, Tensor] = {angles.device: angles}

    def inputs(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_t / n of the shape of x_t, and the time that the network gets, float64, from 0 to T - 1.

        Args:
            x_t: points of the straight path, of shape (B, ...).
            t: their times, in [0, 1], of shape (B,).
        """
        t = t.double()
        x = x_t * broadcast(1 / _norm(t), x_t).to(x_t.dtype)
        table = self._table(t.device)
        theta = torch.atan2(t, 1 - t).clamp(min=self.first, max=self.last)
        before = (torch.searchsorted(table, theta.detach(), right=True) - 1).clamp(0, len(table) - 2)
        low, high = table[before], table[before + 1]
        return x, before + (theta - low) / (high - low)

    def velocity(self, x_t: Tensor, t: Tensor, x: Tensor, output: Tensor) -> Tensor:
        """The velocity eps - x0 that the network's output means, of the shape and dtype of x_t.

        Args:
            x_t, t: as for `inputs`.
            x: x_t / n, from `inputs`.
            output: the network's output for x.
        """
        t, output = t.double(), output.to(x_t.dtype)
        theta = torch.atan2(t, 1 - t)

        def read(angle: Tensor) -> Prediction:
            return Prediction(x, output, self.kind, broadcast(angle.cos(), x), broadcast(angle.sin(), x))

        little = read(theta.clamp(min=self.first if self.kind == "x0" else 0.0, max=math.pi / 4)).flow
        x0 = read(theta.clamp(min=math.pi / 4, max=self.last)).x0
        much = (x_t - x0) * broadcast(1 / t.clamp_min(0.5), x).to(x.dtype)
        return torch.where(broadcast(theta > math.pi / 4, x), much, little)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._angles:
            self._angles[device] = next(iter(self._angles.values())).to(device)
        return self._angles[device]


def _norm(t: Tensor) -> Tensor:
    return ((1 - t).square() + t.square()).sqrt()
