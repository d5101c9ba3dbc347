"""Fields whose surfaces are known in closed form, each with parameters that can be differentiated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.text3d.field import FieldValues


class Shape:
    """P objects of one kind, of a colour that varies linearly from place to place: middle + slope . point, clamped."""

    def __init__(self, colour: Tensor, radius: float = 1.0, slope: float = 0.0) -> None:
        self.colour, self.radius, self.slope = colour, radius, slope
        self.asked = 0  # points, over all calls

    def __len__(self) -> int:
        return len(self.colour)

    def sdf(self, points: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, points: Tensor) -> FieldValues:
        sdf = self.sdf(points)
        colours = self.colour[:, None] + self.slope * points
        return FieldValues(sdf, colours.expand(*sdf.shape, 3))


class Spheres(Shape):
    """Spheres of sizes (P,) around middles (P, 3)."""

    def __init__(self, sizes: Tensor, middles: Tensor, colour: Tensor, radius: float = 1.0, slope: float = 0.0) -> None:
        super().__init__(colour, radius, slope)
        self.sizes, self.middles = sizes, middles

    def sdf(self, points: Tensor) -> Tensor:
        self.asked += points.shape[1]
        return (points - self.middles[:, None]).norm(dim=-1) - self.sizes[:, None]


class Boxes(Shape):
    """Boxes of half-sides (P, 3) around the origin."""

    def __init__(self, half: Tensor, colour: Tensor, radius: float = 1.0) -> None:
        super().__init__(colour, radius)
        self.half = half

    def sdf(self, points: Tensor) -> Tensor:
        beyond = points.abs() - self.half[:, None]
        return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0)


class Blobs(Shape):
    """Level - exp(-|x - middle|^2 / (2 width^2)): smooth everywhere, and no true distance."""

    def __init__(
        self, widths: Tensor, middles: Tensor, colour: Tensor, radius: float = 1.0, slope: float = 0.0
    ) -> None:
        super().__init__(colour, radius, slope)
        self.widths, self.middles = widths, middles

    def sdf(self, points: Tensor) -> Tensor:
        squares = (points - self.middles[:, None]).square().sum(-1)
        return 0.5 - torch.exp(-squares / (2 * self.widths[:, None] ** 2))


class Constant(Shape):
    """One signed distance (P,) everywhere, so one density in the whole box."""

    def __init__(self, distances: Tensor, colour: Tensor, radius: float = 1.0) -> None:
        super().__init__(colour, radius)
        self.distances = distances

    def sdf(self, points: Tensor) -> Tensor:
        return self.distances[:, None].expand(-1, points.shape[1])


class Voxels:
    """A table (P, 4, R, R, R) over the box, in z, y, x, between whose values `grid_sample` interpolates."""

    def __init__(self, table: Tensor, radius: float = 1.0) -> None:
        self.table, self.radius = table, radius

    def __len__(self) -> int:
        return len(self.table)

    def sdf(self, points: Tensor) -> Tensor:
        return self(points).sdf

    def __call__(self, points: Tensor) -> FieldValues:
        places = (points / self.radius).expand(len(self), -1, -1)[:, :, None, None]
        found = F.grid_sample(self.table, places, mode="bilinear", padding_mode="border", align_corners=True)
        found = found[..., 0, 0]
        return FieldValues(found[:, 0], found[:, 1:].transpose(1, 2))
