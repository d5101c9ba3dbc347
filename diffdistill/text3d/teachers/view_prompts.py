"""Prompts that name the direction of the view, and the negative prompts and weights of perp-neg.

    azimuth    0 ......... 90 ......... 180
    r          1 ......... 0
                           1 .......... 0
    positive   r front + (1 - r) side | r side + (1 - r) back
    negative   front, side            | side, front

Perp-Neg (arXiv 2304.04968) leads away from the directions that are not seen, most of all from the front where the back
is. Its weights are f(r) = a exp(-b r) + c; ScaleDreamer (arXiv 2407.02040) takes half of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.camera_ranges import wrapped

DIRECTIONS = ("front view", "side view", "back view", "overhead view")
FRONT, SIDE, BACK, OVERHEAD = range(4)
# a, b, c of the weights; in the front half those of front and side, in the back half those of side and front
FRONT_SIDE, SIDE_FRONT = (4.0, 0.5, -2.426), (4.0, 0.5, -2.426)
SIDE_BACK, FRONT_BACK = (1.0, 0.5, -0.606), (1.0, 0.5, 0.967)


@dataclass(frozen=True)
class ViewPrompts:
    """How prompts depend on the camera; angles are in degrees.

    Args:
        mode: "none"; "words", the prompt with the name of the direction; "perp_neg", a blend of the two nearest
            directions, and negative prompts; "auto", which is words, and none for a teacher that is told cameras.
        front_deg: with words, up to this azimuth to either side the view is from the front.
        back_deg: with words, up to this azimuth from the back to either side it is from behind.
        overhead_deg: above this elevation it is from overhead, whatever the azimuth.
        strength: factor of perp-neg's weights; 1 in threestudio, 0.5 in ScaleDreamer.

    Raises:
        UserError: a setting is out of its range.
    """

    mode: Literal["auto", "none", "words", "perp_neg"] = "auto"
    front_deg: float = 30.0
    back_deg: float = 30.0
    overhead_deg: float = 60.0
    strength: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "none", "words", "perp_neg"):
            raise UserError(f"directions.mode is {self.mode!r}; it must be auto, none, words or perp_neg")
        for name, most in (("front_deg", 180), ("back_deg", 180), ("overhead_deg", 90)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"directions.{name} is {getattr(self, name)}; it must be in [0, {most}]")
        if self.front_deg + self.back_deg > 180:
            raise UserError(
                f"directions.front_deg {self.front_deg} and back_deg {self.back_deg} overlap; their sum is 180 at most"
            )
        if not 0 <= self.strength < math.inf:
            raise UserError(f"directions.strength is {self.strength}; it must be a number from 0")


class Blend(NamedTuple):
    """What perp-neg asks for at each of R views.

    Attributes:
        positive: shares of the four directions, (R, 4); they add up to 1.
        negatives: which direction each of the two negative prompts names, (R, 2) int64; -1 for the empty prompt.
        weights: of the two, (R, 2), 0 or more.
    """

    positive: Tensor
    negatives: Tensor
    weights: Tensor


def with_directions(prompt: str) -> list[str]:
    """The prompt with the name of each of the four directions.

    >>> with_directions("a mug")[:2]
    ['a mug, front view', 'a mug, side view']
    """
    return [f"{prompt}, {direction}" for direction in DIRECTIONS]


def directions(azimuth_deg: Tensor, elevation_deg: Tensor, how: ViewPrompts) -> Tensor:
    """The nearest of the four directions for each view, (R,) int64 in the order of `DIRECTIONS`."""
    away = wrapped(azimuth_deg).abs()
    found = torch.full_like(away, SIDE, dtype=torch.int64)
    found[away < how.front_deg] = FRONT
    found[away > 180 - how.back_deg] = BACK
    found[elevation_deg > how.overhead_deg] = OVERHEAD
    return found


def blend(azimuth_deg: Tensor, elevation_deg: Tensor, how: ViewPrompts) -> Blend:
    """What perp-neg asks for at views (R,), in degrees."""
    away = wrapped(azimuth_deg).abs()
    front, overhead = away < 90, elevation_deg > how.overhead_deg
    r = torch.where(front, 1 - away / 90, 2 - away / 90)
    positive = torch.zeros(len(r), len(DIRECTIONS), dtype=r.dtype, device=r.device)
    zero = torch.zeros_like(r)
    positive[:, FRONT] = torch.where(front, r, zero)
    positive[:, SIDE] = torch.where(front, 1 - r, r)
    positive[:, BACK] = torch.where(front, zero, 1 - r)
    positive[overhead] = positive.new_tensor([float(k == OVERHEAD) for k in range(len(DIRECTIONS))])
    first = torch.where(front, FRONT, SIDE)
    negatives = torch.stack([first, FRONT + SIDE - first], 1)
    negatives[overhead] = -1
    in_front = torch.stack([falling(r, FRONT_SIDE), falling(1 - r, SIDE_FRONT)], 1)
    behind = torch.stack([falling(r, SIDE_BACK), falling(r, FRONT_BACK)], 1)
    weights = how.strength * torch.where(front[:, None], in_front, behind)
    weights[overhead] = 0
    return Blend(positive, negatives, weights)


def falling(r: Tensor, numbers: Sequence[float]) -> Tensor:
    """f(r) = a exp(-b r) + c.

    >>> [round(float(falling(torch.tensor(r), FRONT_SIDE)), 3) for r in (0.0, 1.0)]
    [1.574, 0.0]
    """
    a, b, c = numbers
    return a * torch.exp(-b * r) + c
