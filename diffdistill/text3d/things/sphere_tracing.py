"""Views of procedural things, by sphere tracing.

    rays --steps of the distance--> hits --> normals --> shade of the part that is hit --mean of n x n rays--> pixels

Notable:
- a view has three channels: the shade of the main part, the shade of the second part, and alpha. A shade is 0 where
  the part is not seen, and pixels at an edge hold the mean of their rays. So for any colours of the parts and of the
  background the image is main c1 + second c2 + (1 - alpha) background, exactly;
- rays that miss the ball in which all things lie are never traced, and those that have ended are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffdistill.text3d.cameras import Rays, ball_interval
from diffdistill.text3d.things.procedural import REACH, Parts, Thing
from diffdistill.text3d.things.viewpoints import shade, view_cameras

HIT = 2e-3  # a ray that is so near has hit
LEAST = 2e-3  # the shortest step
STEPS = 96
SLOPE_STEP = 4e-3  # between the points that a normal is made of
_CORNERS = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


@torch.no_grad()
def traced_views(
    thing: Thing, instance: Tensor, azimuth: Tensor, elevation: Tensor, size: int, supersampling: int = 2
) -> Tensor:
    """Views of one instance of a thing.

    Args:
        thing: the thing.
        instance: (JITTERS,) in [0, 1].
        azimuth: (V,) in degrees.
        elevation: (V,) in degrees.
        size: side of a view in pixels, S.
        supersampling: rays along a side of a pixel.

    Returns:
        (V, 3, S, S) in [0, 1]: main shade, second shade, alpha.
    """
    fine = size * supersampling

    def parts(points: Tensor) -> Parts:
        return thing.parts(points, instance)

    rays = view_cameras(azimuth, elevation).rays(fine, fine)
    rays = Rays(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3))
    found = torch.zeros_like(rays.origins)
    hits, points = _hits(lambda at: torch.minimum(*parts(at)), rays)
    at = parts(points)
    bright, main = shade(normals(lambda at: torch.minimum(*parts(at)), points)), at.main <= at.second
    found[hits] = torch.stack([bright * main, bright * ~main, torch.ones_like(bright)], -1)
    pixels = found.view(-1, size, supersampling, size, supersampling, 3).mean((2, 4))
    return pixels.permute(0, 3, 1, 2).contiguous()


def normals(distance: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Unit gradients (N, 3) of a distance at points (N, 3), by differences between the corners of a tetrahedron."""
    corners = torch.tensor(_CORNERS, device=points.device)
    slope = sum(corner * distance(points + SLOPE_STEP * corner)[..., None] for corner in corners)
    return torch.nn.functional.normalize(torch.as_tensor(slope), dim=-1)


def _hits(distance: Callable[[Tensor], Tensor], rays: Rays) -> tuple[Tensor, Tensor]:
    """Which of the rays (R, 3) hit, as indexes (H,), and where, (H, 3)."""
    starts, directions = rays
    near, far, met = ball_interval(rays, REACH)
    ray = met.nonzero()[:, 0]
    travelled, end = near[ray], far[ray]
    hits, points = [ray[:0]], [starts[:0]]
    for _ in range(STEPS):
        at = starts[ray] + travelled[:, None] * directions[ray]
        left = distance(at)
        hit = left < HIT
        hits.append(ray[hit])
        points.append(at[hit])
        travelled = travelled + left.clamp_min(LEAST)
        going = ~hit & (travelled < end)
        ray, travelled, end = ray[going], travelled[going], end[going]
        if not len(ray):
            break
    return torch.cat(hits), torch.cat(points)
