"""Terms that keep an object an object, with the published formulas, and the schedules of their weights.

    term          formula                                              weights in ScaleDreamer (Ma et al. 2024)
    sparsity      mean of sqrt(opacity^2 + 0.01)                       20
    opaque        mean of the binary entropy of the opacity            0, then to 10 (1) over the last fifth of the run
    eikonal       mean of (|gradient of the sdf| - 1)^2                100 to 1 over the first tenth; or 0.01
    orientation   sum of w max(0, <n, d>)^2, over the rays that hit    0
    z_variance    sum of w (t - depth)^2, mean of the opaque rays      0

All are functions of tensors (see `render.Samples`), and give one number. In a run that ends well none but a whiff of
the eikonal term was needed by the small system of this project.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import UserError


def sparsity(opacity: Tensor) -> Tensor:
    """Few rays are hit: the mean of sqrt(opacity^2 + 0.01); opacities in [0, 1], of any shape."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaque(opacity: Tensor, margin: float = 1e-3) -> Tensor:
    """Rays are hit or not: the mean of -(o log o + (1 - o) log(1 - o)), of opacities of any shape, in nats.

    Args:
        opacity: in [0, 1].
        margin: opacities are clamped to [margin, 1 - margin], where the gradient ends.
    """
    o = opacity.clamp(margin, 1 - margin)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def eikonal(gradients: Tensor) -> Tensor:
    """The signed distance grows by 1 a unit of length: mean of (|g| - 1)^2, of gradients (..., 3).

    A gradient of exactly 0 costs 1 and is left where it is (Gropp et al. 2020).
    """
    return (gradients.norm(dim=-1) - 1).square().mean()


def orientation(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """Surfaces that are seen face the camera: sum of w max(0, <n, d>)^2, divided by the number of rays that hit.

    No gradient goes through the weights (Ref-NeRF, Verbin et al. 2022, equation 11, as threestudio has it).

    Args:
        weights: (..., S).
        normals: (..., S, 3), outward; they are given length 1.
        directions: (..., 3) of the rays, of length 1.
    """
    unit = torch.nn.functional.normalize(normals, dim=-1)
    away = (unit * directions[..., None, :]).sum(-1).clamp_min(0)
    hit = (weights.detach().sum(-1) > 0).sum().clamp_min(1)
    return (weights.detach() * away.square()).sum() / hit


def z_variance(weights: Tensor, places: Tensor) -> Tensor:
    """A ray meets its surface in one place: sum of w (t - depth)^2, mean of the rays with an opacity above 1/2.

    The depth is sum of w t, not divided by the opacity, as in threestudio. Without such rays it is 0.

    Args:
        weights: (..., S).
        places: t of each weight, (..., S), broadcast against them.
    """
    depth = (weights * places).sum(-1, keepdim=True)
    variance = (weights * (places - depth).square()).sum(-1)
    chosen = (weights.detach().sum(-1) > 0.5).to(variance)
    return (variance * chosen).sum() / chosen.sum().clamp_min(1)


@dataclass(frozen=True)
class LinearSchedule:
    """A number that stays, goes in a straight line, and stays again, over a run.

    The order is that of threestudio's lists, [start_step, first, last, end_step], but times are shares of the run.

    Attributes:
        start: share of the run, in [0, 1], up to which the number is `first`.
        first: the number at first.
        last: the number in the end.
        end: share of the run, in [start, 1], from which it is `last`.

    >>> weight = LinearSchedule(0.0, 100.0, 1.0, 0.1)
    >>> weight(0.0), weight(0.05), weight(0.7)
    (100.0, 50.5, 1.0)
    """

    start: float
    first: float
    last: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise UserError(
                f"a schedule goes from {self.start:g} to {self.end:g} of the run; it must be 0 <= start <= end <= 1"
            )

    def __call__(self, share: float) -> float:
        """The number at a share of the run in [0, 1]."""
        if share < self.start or share >= self.end:
            return self.first if share < self.start else self.last
        return self.first + (self.last - self.first) * (share - self.start) / (self.end - self.start)

    @classmethod
    def constant(cls, value: float) -> LinearSchedule:
        """A number that never changes."""
        return cls(0.0, value, value, 1.0)
