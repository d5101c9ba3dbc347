"""Views of coloured surface points, drawn into a grid of small cells in which the nearest point wins.

    points --perspective--> cell and depth --nearest of each cell--> colour x shade --mean of n x n cells--> pixels

Notable:
- it needs no graphics library and runs wherever torch runs. There must be several points for each cell, or else what
  lies behind a surface shines through: see `cell_area`;
- a cell is filled wherever a point falls into it, so outlines lie about half a cell further out than those of rays
  through the middles of cells: a sixth of a pixel at 3 x 3 cells a pixel;
- normals are turned to the camera first, since the faces of real models do not always point outwards;
- the result has colours times alpha, and alpha, so for any background the image is colours + (1 - alpha) background.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill.text3d.things.viewpoints import DISTANCE, FOV_DEG, shade, view_cameras

TANGENT = math.tan(math.radians(FOV_DEG / 2))


class SurfacePoints(NamedTuple):
    """Points on a surface, on one device.

    Attributes:
        positions: (N, 3), within the ball of radius 1.
        normals: (N, 3), of length 1, of either sign.
        colours: (N, 3), sRGB in [0, 1].
    """

    positions: Tensor
    normals: Tensor
    colours: Tensor


def cell_area(size: int, supersampling: int) -> float:
    """The area of a surface that covers one cell, where it faces the camera at the depth of the origin."""
    return (2 * DISTANCE * TANGENT / (size * supersampling)) ** 2


@torch.no_grad()
def splatted_views(
    points: SurfacePoints, azimuth: Tensor, elevation: Tensor, size: int, supersampling: int = 3
) -> Tensor:
    """Views of points.

    Args:
        points: of the surface.
        azimuth: (V,) in degrees.
        elevation: (V,) in degrees.
        size: side of a view in pixels, S.
        supersampling: cells along a side of a pixel.

    Returns:
        (V, 4, S, S) in [0, 1]: red, green and blue, which are multiplied by alpha, and alpha.
    """
    fine = size * supersampling
    to_world = view_cameras(azimuth, elevation).to_world()[:, :3, :3]
    views = [_cells(points, matrix.T, fine) for matrix in to_world]
    pixels = torch.stack(views).view(-1, size, supersampling, size, supersampling, 4).mean((2, 4))
    return pixels.permute(0, 3, 1, 2).contiguous()


def _cells(points: SurfacePoints, axes: Tensor, fine: int) -> Tensor:
    """(fine^2, 4): what the nearest point of each cell shows, or zeros. The axes are right, up and back, one a row."""
    across, upwards, outwards = (points.positions @ axes.T).unbind(-1)
    depth = DISTANCE - outwards
    column = ((1 + across / (depth * TANGENT)) * (fine / 2)).floor().long()
    row = ((1 - upwards / (depth * TANGENT)) * (fine / 2)).floor().long()
    seen = ((column >= 0) & (column < fine) & (row >= 0) & (row < fine)).nonzero()[:, 0]
    cell, depth = (row * fine + column)[seen], depth[seen]
    nearest = depth.new_full((fine * fine,), torch.inf).scatter_reduce(0, cell, depth, "amin")
    wins = depth == nearest[cell]
    # of points at one depth the first one is taken, so that a view is the same each time
    first = seen.new_full((fine * fine,), len(points.positions)).scatter_reduce(0, cell[wins], seen[wins], "amin")
    filled = first < len(points.positions)
    chosen = first[filled]
    towards = DISTANCE * axes[2] - points.positions[chosen]
    normals = points.normals[chosen]
    normals = torch.where((normals * towards).sum(-1, keepdim=True) < 0, -normals, normals)
    made = depth.new_zeros(fine * fine, 4)
    made[filled, :3] = points.colours[chosen] * shade(normals)[:, None]
    made[filled, 3] = 1
    return made
