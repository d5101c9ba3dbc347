"""Signed distances to simple solids, of which things are put together.

    flat       rectangle, polygon, half_disc                              on (x, y)
    solid      ball, box, torus                                           on (x, y, z)
    made       extruded(flat, along, half)    a flat shape drawn along an axis
               flat(radial(x, y), z)          a flat shape turned around the z axis
    joined     union, without

Notable:
- a point is given by its components, so that a shape is moved by `x - 0.3` and turned to another axis by the order of
  the arguments. Sizes are numbers, or tensors that broadcast with the components;
- each solid is exact: outside and inside the value is the Euclidean distance to the surface. `union` keeps that
  outside, and `without` gives a lower bound of it, so spheres can be traced through both;
- a flat shape that is turned around an axis must be symmetric about it. Then its distance is that of the solid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

Size = Tensor | float
Corners = Sequence[tuple[Size, Size]]


def radial(x: Tensor, y: Tensor) -> Tensor:
    """The distance from the z axis.

    >>> radial(torch.tensor(3.0), torch.tensor(-4.0)).item()
    5.0
    """
    return (x * x + y * y).sqrt()


def ball(x: Tensor, y: Tensor, z: Tensor, radius: Size) -> Tensor:
    """Distance to a ball around the origin.

    >>> ball(*torch.tensor([0.0, 0.0, 2.0]), 0.5).item()
    1.5
    """
    return (x * x + y * y + z * z).sqrt() - radius


def box(x: Tensor, y: Tensor, z: Tensor, a: Size, b: Size, c: Size, rounding: float = 0.0) -> Tensor:
    """Distance to a box around the origin.

    Args:
        x, y, z: components of the points, of one shape.
        a, b, c: half the sides along x, y and z, rounded edges included.
        rounding: radius of the edges.

    >>> box(*torch.tensor([3.0, 5.0, 0.0]), 2.0, 1.0, 1.0).item()  # 1 beyond one face and 4 beyond another
    4.123105525970459
    """
    p, q, r = x.abs() - a + rounding, y.abs() - b + rounding, z.abs() - c + rounding
    outside = (p.clamp_min(0).square() + q.clamp_min(0).square() + r.clamp_min(0).square()).sqrt()
    return outside + torch.maximum(torch.maximum(p, q), r).clamp_max(0) - rounding


def torus(x: Tensor, y: Tensor, z: Tensor, radius: Size, tube: Size) -> Tensor:
    """Distance to a torus around the z axis.

    Args:
        x, y, z: components of the points, of one shape.
        radius: of the circle in the middle of the tube.
        tube: radius of the tube.

    >>> round(torus(*torch.tensor([0.6, 0.0, 0.0]), 0.5, 0.25).item(), 4)
    -0.15
    """
    return radial(radial(x, y) - radius, z) - tube


def rectangle(x: Tensor, y: Tensor, a: Size, b: Size) -> Tensor:
    """Distance in the plane to a rectangle around the origin, whose sides are 2 a along x and 2 b along y.

    >>> rectangle(*torch.tensor([0.0, 3.0]), 5.0, 1.0).item()
    2.0
    """
    p, q = x.abs() - a, y.abs() - b
    return radial(p.clamp_min(0), q.clamp_min(0)) + torch.maximum(p, q).clamp_max(0)


def half_disc(x: Tensor, y: Tensor, radius: Size) -> Tensor:
    """Distance in the plane to the half of a disc around the origin where y is positive.

    >>> half_disc(*torch.tensor([0.0, -2.0]), 1.0).item()
    2.0
    """
    arc = radial(x, y) - radius
    below = radial((x.abs() - radius).clamp_min(0), y.clamp_max(0))  # to the straight side, or to its ends
    return torch.where(y < 0, below, torch.maximum(arc, -y))


def polygon(x: Tensor, y: Tensor, corners: Corners) -> Tensor:
    """Distance in the plane to a polygon, which may be concave, but does not cross itself.

    A point is inside where a ray along x from it crosses an odd number of edges.

    Args:
        x, y: components of the points, of one shape.
        corners: of the polygon, in order, either way around.

    >>> polygon(*torch.tensor([3.0, 0.0]), [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]).item()
    2.0
    """
    nearest, inside = torch.full_like(x, torch.inf), torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        share = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)  # of the edge, up to the nearest point
        nearest = torch.minimum(nearest, (px - ex * share).square() + (py - ey * share).square())
        straddles = (py < 0) != (y < by)
        left = (px * ey - py * ex < 0) == (torch.as_tensor(ey) > 0)  # the point lies on the side of smaller x
        inside = inside ^ (straddles & left)
    distance = nearest.clamp_min(1e-12).sqrt()
    return torch.where(inside, -distance, distance)


def extruded(flat: Tensor, along: Tensor, half: Size) -> Tensor:
    """Distance to a flat shape drawn along the axis that is perpendicular to it.

    Args:
        flat: distances to the flat shape.
        along: component of the points along the axis.
        half: half the length of the solid.

    >>> extruded(torch.tensor(3.0), torch.tensor(5.0), 1.0).item()
    5.0
    """
    end = along.abs() - half
    return radial(flat.clamp_min(0), end.clamp_min(0)) + torch.maximum(flat, end).clamp_max(0)


def union(*distances: Tensor) -> Tensor:
    """The distance to the nearest of several solids."""
    return reduce(torch.minimum, distances)


def without(solid: Tensor, cut: Tensor) -> Tensor:
    """A solid with another one cut out of it: at most the distance, and its sign is right."""
    return torch.maximum(solid, -cut)
