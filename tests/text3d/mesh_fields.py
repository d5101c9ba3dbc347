"""Fields whose surfaces and colours are known exactly."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffdistill.text3d.field import FieldValues

Function = Callable[[Tensor], Tensor]


class Shapes:
    """A field of P objects, each given by functions of points (N, 3). It counts the points it is asked for."""

    def __init__(self, sdfs: Sequence[Function], colours: Sequence[Function] | None = None, radius: float = 1.0):
        self.sdfs, self.radius, self.asked = list(sdfs), radius, 0
        self.colours = list(colours or [smooth] * len(self.sdfs))

    def __len__(self) -> int:
        return len(self.sdfs)

    def sdf(self, points: Tensor) -> Tensor:
        assert points.abs().max() <= self.radius and points.dtype == torch.float32
        self.asked += points.shape[0] * points.shape[1]
        rows = points.expand(len(self), -1, -1)
        return torch.stack([sdf(row) for sdf, row in zip(self.sdfs, rows, strict=True)])

    def __call__(self, points: Tensor) -> FieldValues:
        rows = points.expand(len(self), -1, -1)
        return FieldValues(self.sdf(points), torch.stack([f(row) for f, row in zip(self.colours, rows, strict=True)]))


def ball(radius: float = 0.6, centre: Sequence[float] = (0.0, 0.0, 0.0)) -> Function:
    return lambda points: (points - torch.tensor(centre)).norm(dim=-1) - radius


def torus(large: float = 0.55, small: float = 0.2) -> Function:
    """Around the z axis."""
    return lambda points: torch.hypot(torch.hypot(points[..., 0], points[..., 1]) - large, points[..., 2]) - small


def box(sides: Sequence[float], centre: Sequence[float] = (0.0, 0.0, 0.0)) -> Function:
    """Its half sides are `sides`."""

    def sdf(points: Tensor) -> Tensor:
        away = (points - torch.tensor(centre)).abs() - torch.tensor(sides)
        return away.clamp_min(0).norm(dim=-1) + away.amax(-1).clamp_max(0)

    return sdf


def union(*sdfs: Function) -> Function:
    return lambda points: torch.stack([sdf(points) for sdf in sdfs]).amin(0)


def smooth(points: Tensor) -> Tensor:
    """A colour that changes slowly, other along each axis, and reaches dark and light."""
    return 0.5 + 0.5 * torch.sin(points * torch.tensor([3.0, 2.5, 3.5]) + torch.tensor([0.3, 1.0, 2.0]))


def marked(points: Tensor) -> Tensor:
    """Red at the top (+z), green at the front (+x), blue at +y, grey elsewhere."""
    made = torch.full_like(points, 0.2)
    for axis, channel in ((2, 0), (0, 1), (1, 2)):
        made[points[..., axis] > 0.45] = torch.eye(3)[channel]
    return made
