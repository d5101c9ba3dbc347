"""From where things are seen, and the light on them.

    ring         4 views of one elevation, 90 degrees apart; the azimuth of the first and the elevation are drawn
    reference    24 fixed views: 8 azimuths, at the elevations 0, 20 and 40

Notable:
- all views are those of `text3d.cameras.Cameras` at one distance and with one field of view. The ball of radius 1
  around the origin then covers 97 % of the width of a view;
- the light is fixed to the world and has no shadows, so a shade is a property of the surface, as a colour is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.text3d.cameras import Cameras

DISTANCE = 3.0
FOV_DEG = 40.0
RING = 4  # views
ELEVATION_DEG = (-15.0, 50.0)  # of rings
REFERENCE_AZIMUTH_DEG = tuple(45.0 * k for k in range(8))
REFERENCE_ELEVATION_DEG = (0.0, 20.0, 40.0)
REFERENCES = len(REFERENCE_AZIMUTH_DEG) * len(REFERENCE_ELEVATION_DEG)
LIGHT = (0.42, 0.3, 0.857)  # the direction from which it comes
DARKEST = 0.45


def view_cameras(azimuth_deg: Tensor, elevation_deg: Tensor) -> Cameras:
    """The cameras of views: azimuth and elevation (V,) in degrees, at `DISTANCE` and with `FOV_DEG`."""
    return Cameras(
        elevation_deg, azimuth_deg, torch.full_like(azimuth_deg, DISTANCE), torch.full_like(azimuth_deg, FOV_DEG)
    )


def ring_starts(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The first azimuth and the elevation of rings.

    Args:
        uniforms: (R, 2) in [0, 1].

    Returns:
        (R,) in [0, 360) and (R,) in [-15, 50], degrees.
    """
    low, high = ELEVATION_DEG
    return (360 * uniforms[:, 0]) % 360, low + (high - low) * uniforms[:, 1]


def ring_views(azimuth_deg: Tensor, elevation_deg: Tensor) -> tuple[Tensor, Tensor]:
    """The views of rings: azimuth and elevation (..., 4), from the first azimuth and the elevation (...), in degrees.

    >>> ring_views(torch.tensor([300.0]), torch.tensor([10.0]))[0].tolist()
    [[300.0, 30.0, 120.0, 210.0]]
    """
    turns = (360 / RING) * torch.arange(RING, device=azimuth_deg.device)
    around = (azimuth_deg[..., None] + turns) % 360
    return around, elevation_deg[..., None].expand_as(around)


def reference_views(device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The reference views: azimuth (24,) and elevation (24,) in degrees, of one elevation after another."""
    azimuth = torch.tensor(REFERENCE_AZIMUTH_DEG, device=device).repeat(len(REFERENCE_ELEVATION_DEG))
    elevation = torch.tensor(REFERENCE_ELEVATION_DEG, device=device).repeat_interleave(len(REFERENCE_AZIMUTH_DEG))
    return azimuth, elevation


def shade(normals: Tensor) -> Tensor:
    """How bright a surface is.

    It is linear in the cosine between the normal and the light, so it has no edge where the light ends.

    Args:
        normals: (..., 3), unit vectors that point outwards.

    Returns:
        (...) in [0.45, 1].

    >>> [round(x, 3) for x in shade(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])).tolist()]
    [0.961, 0.489]
    """
    light = torch.nn.functional.normalize(torch.tensor(LIGHT, device=normals.device, dtype=normals.dtype), dim=0)
    return DARKEST + (1 - DARKEST) / 2 * (1 + normals @ light)
