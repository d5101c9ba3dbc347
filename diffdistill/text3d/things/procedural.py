"""Twelve named things as signed distance functions, whose proportions are drawn from uniform numbers.

    ball cube cone ring table chair mug tree house car lamp mushroom

Notable:
- a thing has two parts. The main part takes the colour of the prompt, and the second part has the thing's own colour:
  the legs of a table, the stone of a ring, the coffee in a mug. Ball, cube and cone have no second part;
- what has a front faces +x: the open side of the chair, the door of the house, the nose of the car, the flat face of
  the ring. The handle of the mug points to +y, which is to the right of who looks at the front;
- an instance is `JITTERS` numbers in [0, 1], each of which sets one proportion. All at one half is the mean instance;
- all instances lie within `REACH` of the origin;
- distances are exact, or lower bounds near where something is cut out, so spheres can be traced through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things.primitives import (
    Corners,
    Size,
    ball,
    box,
    extruded,
    half_disc,
    polygon,
    radial,
    rectangle,
    torus,
    union,
    without,
)

REACH = 0.95  # all things lie in the ball of this radius
JITTERS = 5  # numbers that make an instance
FAR = 10.0  # the distance to a second part that is not there

Between = Callable[[int, float, float], Tensor]  # of a jitter and two bounds: a value between them
Components = tuple[Tensor, Tensor, Tensor]
_SPOTS = (  # directions of the mushroom's spots
    (0.0, 0.2, 1.0), (1.0, 0.3, 0.6), (-0.3, 1.0, 0.7), (-0.8, -0.4, 0.8), (0.3, -1.0, 0.5),
    (0.9, -0.7, 0.25), (0.8, 1.0, 0.25), (-1.0, 0.7, 0.2), (-0.8, -1.0, 0.2),
)  # fmt: skip


class Parts(NamedTuple):
    """Signed distances to the two parts of a thing, of the shape of the points."""

    main: Tensor
    second: Tensor


@dataclass(frozen=True)
class Thing:
    """A named thing.

    Attributes:
        shape: makes the distances of components of points and of an instance.
        companion: the colour of the second part, sRGB in [0, 1].
    """

    shape: Callable[[Components, Between], Parts]
    companion: tuple[float, float, float]

    def parts(self, points: Tensor, instance: Tensor) -> Parts:
        """Distances to the two parts.

        Args:
            points: (..., 3).
            instance: (..., JITTERS) in [0, 1], of the points' device. Its leading dimensions broadcast with theirs.

        Returns:
            main and second, each (...).

        Raises:
            UserError: the instance has another number of jitters.
        """
        if instance.shape[-1] != JITTERS:
            raise UserError(f"an instance has {JITTERS} numbers, and this one has {instance.shape[-1]}")

        def between(jitter: int, low: float, high: float) -> Tensor:
            return low + (high - low) * instance[..., jitter]

        x, y, z = points.unbind(-1)
        return self.shape((x, y, z), between)


def mean_instance(device: torch.device | None = None) -> Tensor:
    """The instance (JITTERS,) in the middle, that things are evaluated by."""
    return torch.full((JITTERS,), 0.5, device=device)


def _alone(main: Tensor) -> Parts:
    return Parts(main, torch.full_like(main, FAR))


def _ball(at: Components, between: Between) -> Parts:
    return _alone(ball(*at, between(0, 0.62, 0.76)))


def _cube(at: Components, between: Between) -> Parts:
    half = between(0, 0.44, 0.53)
    return _alone(box(*at, half, half, half, rounding=0.03))


def _cone(at: Components, between: Between) -> Parts:
    (x, y, z), r, h = at, between(0, 0.5, 0.62), between(1, 0.6, 0.7)
    return _alone(polygon(radial(x, y), z, [(-r, -h), (r, -h), (0.0, h)]))


def _ring(at: Components, between: Between) -> Parts:
    (x, y, z), r, tube, g = at, between(0, 0.5, 0.58), between(1, 0.13, 0.17), between(2, 0.17, 0.21)
    z = z + 0.12
    stone: Corners = [(-g * 0.6, g * 0.6), (g * 0.6, g * 0.6), (g, g * 0.2), (0.0, -g), (-g, g * 0.2)]
    return Parts(torus(y, z, x, r, tube), polygon(radial(x, y), z - r - tube - g * 0.5, stone))


def _table(at: Components, between: Between) -> Parts:
    (x, y, z), a, b = at, between(0, 0.56, 0.66), between(1, 0.42, 0.5)
    top, low, w = between(2, 0.36, 0.44), between(3, 0.42, 0.52), between(4, 0.06, 0.085)
    leg = box(x.abs() - a + w + 0.02, y.abs() - b + w + 0.02, z - (top - low) / 2, w, w, (top + low) / 2 - 0.02)
    return Parts(box(x, y, z - top + 0.06, a, b, 0.06, rounding=0.02), leg)


def _chair(at: Components, between: Between) -> Parts:
    (x, y, z), a, back = at, between(0, 0.35, 0.41), between(1, 0.6, 0.72)
    seat, low, w = between(2, -0.14, -0.04), between(3, 0.6, 0.68), between(4, 0.055, 0.075)
    plate = box(x, y, z - seat, a, a, 0.06, rounding=0.02)
    rest = box(x + a - 0.055, y, z - (back + seat) / 2, 0.055, a, (back - seat) / 2, rounding=0.02)
    leg = box(x.abs() - a + w, y.abs() - a + w, z - (seat - low) / 2, w, w, (seat + low) / 2)
    return Parts(union(plate, rest), leg)


def _mug(at: Components, between: Between) -> Parts:
    (x, y, z), r, h = at, between(0, 0.44, 0.51), between(1, 0.5, 0.6)
    loop, tube = between(2, 0.27, 0.31), between(3, 0.065, 0.085)
    y = y + 0.18
    rho = radial(x, y)
    inner, floor = r - 0.08, 0.1 - h
    wall = polygon(
        rho, z, [(-r, -h), (r, -h), (r, h), (inner, h), (inner, floor), (-inner, floor), (-inner, h), (-r, h)]
    )
    handle = without(torus(z, y - r, x, loop, tube), rho - r + 0.04)
    level = h - 0.13  # coffee fills the mug: no camera sees a cavity below it, so no generator could learn one
    return Parts(union(wall, handle), rectangle(rho, z - (level + floor) / 2, inner, (level - floor) / 2))


def _tree(at: Components, between: Between) -> Parts:
    (x, y, z), r, side = at, between(0, 0.4, 0.47), between(1, 0.28, 0.34)
    low, trunk = between(2, -0.02, 0.1), between(3, 0.09, 0.13)
    crown = union(
        ball(x, y, z - 0.42, r),
        ball(x - 0.3, y - 0.1, z - low, side),
        ball(x + 0.2, y - 0.28, z - low - 0.06, side),
        ball(x + 0.08, y + 0.32, z - low - 0.03, side),
    )
    return Parts(crown, rectangle(radial(x, y), z + 0.4, trunk, 0.5))


def _house(at: Components, between: Between) -> Parts:
    (x, y, z), a, b = at, between(0, 0.46, 0.54), between(1, 0.37, 0.44)
    wall, gable = between(2, 0.08, 0.18), between(3, 0.29, 0.36)
    beyond, thick = 0.06, 0.09
    eaves = wall - gable * (beyond / b)
    walls = extruded(polygon(y, z, [(-b, -0.62), (b, -0.62), (b, wall), (0.0, wall + gable), (-b, wall)]), x, a)
    edge = b + beyond
    slopes: list[tuple[Size, Size]] = [(-edge, eaves), (0.0, wall + gable), (edge, eaves)]
    roof = extruded(polygon(y, z, [*slopes, *((s, t + thick) for s, t in reversed(slopes))]), x, a + 0.05)
    door = box(x - a, y, z + 0.4, 0.02, 0.12, 0.22)
    window = box(x.abs() - a / 2, y.abs() - b, z + 0.2, 0.11, 0.02, 0.12)
    return Parts(walls, union(roof, door, window))


def _car(at: Components, between: Between) -> Parts:
    (x, y, z), half, h = (
        at,
        between(0, 0.74, 0.83),
        between(1, 0.38, 0.5),
    )  # half the length, and the height of the roof
    rear, wheel = between(2, -0.6, -0.46), between(3, 0.19, 0.23)
    side: Corners = [(-half, -0.2), (half, -0.2), (half, 0.0), (half - 0.1, 0.07), (0.4, 0.13), (-half + 0.03, 0.13)]
    cabin: Corners = [(rear, 0.1), (0.42, 0.1), (0.14, h), (rear + 0.14, h)]
    glass: Corners = [(rear + 0.05, 0.15), (0.34, 0.15), (0.12, h - 0.07), (rear + 0.16, h - 0.07)]
    band: Corners = [
        (rear - 0.01, 0.16),
        (0.4, 0.16),
        (0.19, h - 0.06),
        (rear + 0.1, h - 0.06),
    ]  # windscreen and rear window
    body = union(extruded(polygon(x, z, side), y, 0.37), extruded(polygon(x, z, cabin), y, 0.31))
    windows = union(extruded(polygon(x, z, glass), y, 0.325), extruded(polygon(x, z, band), y, 0.26))
    wheels = extruded(radial(x.abs() - 0.6 * half, z + 0.2) - wheel, y.abs() - 0.33, 0.08)
    return Parts(body, union(windows, wheels))


def _lamp(at: Components, between: Between) -> Parts:
    (x, y, z), wide, narrow = at, between(0, 0.46, 0.54), between(1, 0.22, 0.3)
    low, foot, stem = between(2, 0.08, 0.18), between(3, 0.27, 0.34), between(4, 0.05, 0.07)
    rho = radial(x, y)
    shade = polygon(rho, z, [(-wide, low), (wide, low), (narrow, 0.8), (-narrow, 0.8)])
    return Parts(shade, union(rectangle(rho, z + 0.34, stem, 0.5), rectangle(rho, z + 0.81, foot, 0.055)))


def _mushroom(at: Components, between: Between) -> Parts:
    (x, y, z), r, s, spot = at, between(0, 0.6, 0.7), between(1, 0.17, 0.24), between(2, 0.15, 0.18)
    rho, up = radial(x, y), z - 0.03
    stem = polygon(rho, z, [(-s - 0.06, -0.74), (s + 0.06, -0.74), (s, 0.05), (-s, 0.05)])
    spots = []
    for p, q, t in _SPOTS:
        reach = (r - 0.11) / (p * p + q * q + t * t) ** 0.5
        spots.append(ball(x - p * reach, y - q * reach, up - t * reach, spot))
    return Parts(half_disc(rho, up, r), union(stem, *spots))


_WOOD, _DARK = (0.33, 0.21, 0.13), (0.13, 0.13, 0.15)
THINGS: dict[str, Thing] = {
    "ball": Thing(_ball, _DARK),
    "cube": Thing(_cube, _DARK),
    "cone": Thing(_cone, _DARK),
    "ring": Thing(_ring, (0.74, 0.82, 0.92)),
    "table": Thing(_table, _WOOD),
    "chair": Thing(_chair, _WOOD),
    "mug": Thing(_mug, (0.2, 0.1, 0.05)),
    "tree": Thing(_tree, _WOOD),
    "house": Thing(_house, (0.3, 0.27, 0.29)),
    "car": Thing(_car, _DARK),
    "lamp": Thing(_lamp, (0.32, 0.32, 0.34)),
    "mushroom": Thing(_mushroom, (0.95, 0.9, 0.8)),
}
