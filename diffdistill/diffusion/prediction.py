"""Predictions: what a network predicts, and how every kind of prediction is read from every other.

With x_t = alpha x0 + sigma eps, v = alpha eps - sigma x0 and flow = eps - x0, any kind is a linear
combination of x_t and any other: a x_t + b value. `_COEFFICIENTS` holds (a, b) for all of them. Score models return a
`Prediction`; samplers and losses read from it the kind that they need.

Notable:
- coefficients are computed in float64, and then cast to the dtype that they are used in;
- reading the kind that was predicted returns the network's output itself;
- x0 cannot be read from eps where alpha = 0, nor eps from x0 where sigma = 0: the result is not finite. From v and flow
  every kind can be read at every time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

from .schedule import broadcast, linear_combination

PredictionType = Literal["x0", "eps", "v", "flow"]

PREDICTION_TYPES: tuple[PredictionType, ...] = get_args(PredictionType)

_DIFFUSERS: dict[str, PredictionType] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}

# (predicted, wanted): alpha, sigma -> a, b
_COEFFICIENTS: dict[tuple[str, str], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    ("x0", "eps"): lambda a, s: (1 / s, -a / s),
    ("x0", "v"): lambda a, s: (a / s, -(a * a + s * s) / s),
    ("x0", "flow"): lambda a, s: (1 / s, -(a + s) / s),
    ("eps", "x0"): lambda a, s: (1 / a, -s / a),
    ("eps", "v"): lambda a, s: (-s / a, (a * a + s * s) / a),
    ("eps", "flow"): lambda a, s: (-1 / a, (a + s) / a),
    ("v", "x0"): lambda a, s: (a / (a * a + s * s), -s / (a * a + s * s)),
    ("v", "eps"): lambda a, s: (s / (a * a + s * s), a / (a * a + s * s)),
    ("v", "flow"): lambda a, s: ((s - a) / (a * a + s * s), (a + s) / (a * a + s * s)),
    ("flow", "x0"): lambda a, s: (1 / (a + s), -s / (a + s)),
    ("flow", "eps"): lambda a, s: (1 / (a + s), a / (a + s)),
    ("flow", "v"): lambda a, s: ((a - s) / (a + s), (a * a + s * s) / (a + s)),
}


def check_prediction_type(name: str) -> None:
    """Raise ValueError unless the name is a `PredictionType`."""
    if name not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction type {name!r}; there are: {', '.join(PREDICTION_TYPES)}")


def from_diffusers_prediction_type(name: str) -> PredictionType:
    """The kind that the `prediction_type` of a diffusers scheduler means.

    Raises:
        ValueError: a name that is not supported.

    >>> from_diffusers_prediction_type("v_prediction")
    'v'
    """
    if name not in _DIFFUSERS:
        raise ValueError(f"unsupported prediction_type {name!r}; there are: {', '.join(_DIFFUSERS)}")
    return _DIFFUSERS[name]


@dataclass(frozen=True, eq=False)
class Prediction:
    """One network output at (x_t, t), which can be read as any kind.

    Attributes:
        x_t: noisy samples of shape (B, ...).
        value: what the network predicted, of the same shape.
        kind: its kind.
        alpha, sigma: the schedule at t, float64, of a shape that broadcasts against x_t: (B, 1, ...).

    Raises:
        ValueError: an unknown kind.
    """

    x_t: Tensor
    value: Tensor
    kind: PredictionType
    alpha: Tensor
    sigma: Tensor

    def __post_init__(self) -> None:
        check_prediction_type(self.kind)

    @property
    def x0(self) -> Tensor:
        """The clean sample."""
        return self._read("x0")

    @property
    def eps(self) -> Tensor:
        """The noise."""
        return self._read("eps")

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x0 (Salimans and Ho, arXiv 2202.00512)."""
        return self._read("v")

    @property
    def flow(self) -> Tensor:
        """eps - x0, the velocity dx_t/dt of the straight path."""
        return self._read("flow")

    @property
    def score(self) -> Tensor:
        """grad log p(x_t) = -eps / sigma; not finite at sigma = 0."""
        eps = self.eps
        return -eps * (1 / self.sigma).to(eps.dtype)

    def as_kind(self, kind: PredictionType) -> "Prediction":
        """The same prediction as another kind.

        Raises:
            ValueError: an unknown kind.
        """
        check_prediction_type(kind)
        return self if kind == self.kind else replace(self, value=self._read(kind), kind=kind)

    def detach(self) -> "Prediction":
        """The same prediction without a graph."""
        return replace(self, x_t=self.x_t.detach(), value=self.value.detach())

    def _read(self, kind: PredictionType) -> Tensor:
        if kind == self.kind:
            return self.value
        a, b = _COEFFICIENTS[self.kind, kind](self.alpha, self.sigma)
        return linear_combination(a, self.x_t, b, self.value)


def combine(null: Prediction, cond: Prediction, scale: float | Tensor) -> Prediction:
    """Classifier-free guidance: null + scale (cond - null), in the kind of both (arXiv 2207.12598).

    It is the same in every kind, because it is linear.

    Args:
        null, cond: predictions at one (x_t, t).
        scale: 1 is unguided, 0 unconditional. A tensor of shape (B,) has a scale for each sample.

    Raises:
        ValueError: the two have different kinds or shapes, or the scale is a number that is not finite.
    """
    if null.kind != cond.kind or null.value.shape != cond.value.shape:
        raise ValueError(
            f"cannot combine {null.kind!r} of shape {tuple(null.value.shape)} with {cond.kind!r} of shape "
            f"{tuple(cond.value.shape)}: convert with as_kind"
        )
    if isinstance(scale, Tensor):
        scale = broadcast(scale, cond.value).to(cond.value)
    elif not math.isfinite(scale):
        raise ValueError(f"the guidance scale is {scale}; it must be a finite number")
    return replace(cond, value=null.value + scale * (cond.value - null.value))
