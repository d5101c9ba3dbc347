"""Features on three planes, read by bilinear interpolation and concatenated: a triplane.

    plane 0: columns x, rows y        plane 1: columns x, rows z        plane 2: columns z, rows y

Source: EG3D (arXiv 2112.07945), whose first code had the planes (x, y), (x, z), (z, x) and so none of y and z. The
planes here are those of later large reconstruction models. They cover [-1, 1]^2, with zeros around.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .axes import axis_weights
from .precision import at_least_float32, full_precision

AXES = ((0, 1), (0, 2), (2, 1))  # of each plane: what its columns and its rows are, of x, y and z


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Bilinear interpolation on each plane, in float32 at least.

    Args:
        planes: (P, 3, C, H, W).
        points: (P, N, 3), as x, y, z in [-1, 1]; or (1, N, 3) for all objects.

    Returns:
        (P, N, 3 C): the features of the first plane, then of the others.

    Raises:
        ValueError: there are not three planes, or the numbers of objects differ.
    """
    _check(planes)
    if len(points) not in (1, len(planes)):
        raise ValueError(f"there are planes of {len(planes)} objects and points for {len(points)}")
    count, _, channels, height, width = planes.shape
    planes = at_least_float32(planes)
    places = torch.stack([points[..., axes] for axes in AXES], 1).to(planes.dtype)  # (P or 1, 3, N, 2)
    if len(points) == 1:  # one look-up for all objects
        folded, places = planes.transpose(0, 1).reshape(3, -1, height, width), places[0]
    else:
        folded, places = planes.reshape(-1, channels, height, width), places.flatten(0, 1)
    with full_precision(planes):
        made = F.grid_sample(folded, places[:, None], padding_mode="zeros", align_corners=False)[:, :, 0]
    made = made.view(3, count, channels, -1).transpose(0, 1) if len(points) == 1 else made.unflatten(0, (count, 3))
    return made.flatten(1, 2).transpose(1, 2)


class Planes:
    """Features of P objects, each on its three planes.

    Args:
        planes: (P, 3, C, H, W).

    Raises:
        ValueError: there are not three planes.
    """

    def __init__(self, planes: Tensor) -> None:
        _check(planes)
        self.planes, self.channels = planes, 3 * planes.shape[2]

    def at(self, points: Tensor) -> Tensor:
        """Features (P, N, 3 C) at points (P, N, 3) or (1, N, 3) in [-1, 1]."""
        return sample_planes(self.planes, points)

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Features (P, X Y Z, 3 C) at the points of a grid; each plane is interpolated at its own axes only."""
        planes = at_least_float32(self.planes)
        height, width = planes.shape[3:]
        made = []
        with full_precision(planes):
            for plane, (column, row) in enumerate(AXES):
                a = axis_weights((x, y, z)[column].to(planes.dtype), width, False)
                b = axis_weights((x, y, z)[row].to(planes.dtype), height, False)
                found = (b @ (planes[:, plane] @ a.T)).permute(0, 3, 2, 1)  # (P, columns, rows, C)
                if column > row:
                    found = found.transpose(1, 2)
                missing = 3 - column - row  # the axis that the plane does not have
                found = found.unsqueeze(missing + 1)
                made.append(found.expand(-1, len(x), len(y), len(z), -1))
            return torch.cat(made, -1).flatten(1, 3)


def _check(planes: Tensor) -> None:
    if planes.dim() != 5 or planes.shape[1] != 3:
        raise ValueError(f"planes have shape {tuple(planes.shape)}; they must be (P, 3, C, H, W)")
