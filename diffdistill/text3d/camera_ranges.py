"""The published ways to draw cameras.

    5 numbers, uniform in [0, 1)  --CameraRanges-->  a camera, or a ring of them

Notable:
- drawing is deterministic: the caller passes the uniform numbers, so that a step can be repeated on any device;
- the cameras of a ring share elevation, distance and field of view, as multi-view teachers want it (MVDream, Shi et al.
  2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.cameras import Cameras

UNIFORMS = 5  # numbers that a camera, or a ring of them, is drawn from
RANGES = ("elevation_deg", "azimuth_deg", "distance", "fov_deg")


@dataclass(frozen=True)
class CameraRanges:
    """Where cameras are drawn from; each is uniform in its ranges.

    Attributes:
        elevation_deg: lowest and highest, in [-90, 90].
        azimuth_deg: lowest and highest.
        distance: nearest and farthest; see `distance_over_tangent`.
        fov_deg: narrowest and widest vertical field of view.
        share_on_sphere: share of the cameras whose direction is uniform on the sphere, between the elevations; the
            elevation of the others is uniform, which is denser towards the poles.
        distance_over_tangent: divide the distance by tan(fov / 2), so that the object keeps its size in the image.
        even_azimuths: cut the range of azimuths into one part for each camera of a batch.

    The presets are those of ScaleDreamer (Ma et al. 2024), `SCALEDREAMER_SD` and `SCALEDREAMER_MV`. There one draw
    decides for a whole batch whether it is uniform on the sphere, and the range of degrees is taken as a range of
    shares of the sphere, which makes -10 to 45 degrees -6.4 to 30; here it is drawn for each camera, and ranges mean
    degrees.
    """

    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    azimuth_deg: tuple[float, float] = (-180.0, 180.0)
    distance: tuple[float, float] = (1.0, 1.5)
    fov_deg: tuple[float, float] = (40.0, 70.0)
    share_on_sphere: float = 0.5
    distance_over_tangent: bool = False
    even_azimuths: bool = False

    def __post_init__(self) -> None:
        for name in RANGES:
            low, high = getattr(self, name)
            if not low <= high:
                raise UserError(
                    f"{name} of cameras is from {low:g} to {high:g}; the first must not be above the second"
                )
        if not 0 <= self.share_on_sphere <= 1:
            raise UserError(f"share_on_sphere is {self.share_on_sphere:g}; it must be in [0, 1]")
        for end in (0, 1):
            Cameras.of(*([getattr(self, name)[end]] for name in RANGES))

    def draw(self, uniforms: Tensor) -> Cameras:
        """V cameras, each by itself.

        Args:
            uniforms: (V, 5) in [0, 1): for the choice of how elevation is drawn, elevation, azimuth, distance, and
                field of view.
        """
        _check_uniforms("uniforms", uniforms, UNIFORMS)
        choice, u_elevation, u_azimuth, u_distance, u_fov = uniforms.unbind(1)
        even = between(self.elevation_deg, u_elevation)
        low, high = torch.deg2rad(uniforms.new_tensor(self.elevation_deg)).sin()
        on_sphere = torch.rad2deg((low + (high - low) * u_elevation).clamp(-1, 1).asin())
        elevation = torch.where(choice < self.share_on_sphere, on_sphere, even).clamp(*self.elevation_deg)
        if self.even_azimuths:
            count = len(uniforms)
            u_azimuth = (u_azimuth + torch.arange(count, device=uniforms.device)) / count
        fov = between(self.fov_deg, u_fov)
        distance = between(self.distance, u_distance)
        if self.distance_over_tangent:
            distance = distance / torch.tan(torch.deg2rad(fov) / 2)
        return Cameras(elevation, between(self.azimuth_deg, u_azimuth), distance, fov)

    def draw_rings(
        self, uniforms: Tensor, views: int = 4, jitter: Tensor | None = None, jitter_deg: float = 0.0
    ) -> Cameras:
        """Rings of cameras 360 / views degrees apart, with one elevation, distance and field of view a ring.

        Args:
            uniforms: (G, 5) in [0, 1), one row for each ring; its first camera is drawn as `draw` does.
            views: cameras in a ring.
            jitter: (G, views) in [0, 1), or None.
            jitter_deg: the azimuth of each camera is moved by up to this to either side.

        Returns:
            G views cameras, ring after ring, with azimuths in [-180, 180).
        """
        if views < 1:
            raise UserError(f"a ring has {views} cameras; it must have 1 or more")
        first = self.draw(uniforms)
        turns = torch.arange(views, device=uniforms.device) * (360 / views)
        azimuth = first.azimuth_deg[:, None] + turns
        if jitter is not None:
            _check_uniforms("jitter", jitter, views)
            azimuth = azimuth + (2 * jitter - 1) * jitter_deg
        others = (values.repeat_interleave(views) for values in (first.elevation_deg, first.distance, first.fov_deg))
        elevation, distance, fov = others
        return Cameras(elevation, wrapped(azimuth.flatten()), distance, fov)


def between(ends: tuple[float, float], share: Tensor) -> Tensor:
    """Numbers at shares of the way between two ends."""
    return ends[0] + (ends[1] - ends[0]) * share


def wrapped(azimuth_deg: Tensor) -> Tensor:
    """Azimuths in [-180, 180).

    >>> wrapped(torch.tensor([270.0, -180.0, 180.0])).tolist()
    [-90.0, -180.0, -180.0]
    """
    return (azimuth_deg + 180) % 360 - 180


def orbit(azimuths: int, elevations_deg: list[float], distance: float, fov_deg: float) -> Cameras:
    """Cameras all around an object: for each elevation, so many azimuths from the front on, 360 / azimuths apart."""
    count = azimuths * len(elevations_deg)
    around = wrapped(torch.arange(azimuths) * (360 / azimuths)).repeat(len(elevations_deg))
    elevation = torch.tensor(elevations_deg, dtype=torch.float32).repeat_interleave(azimuths)
    return Cameras(elevation, around, torch.full((count,), float(distance)), torch.full((count,), float(fov_deg)))


def _check_uniforms(name: str, values: Tensor, columns: int) -> None:
    if values.dim() != 2 or values.shape[1] != columns or not bool(((values >= 0) & (values <= 1)).all()):
        raise UserError(f"{name} of cameras is {tuple(values.shape)}; it must be (n, {columns}), with values in [0, 1)")


SCALEDREAMER_SD = CameraRanges()
SCALEDREAMER_MV = CameraRanges(
    elevation_deg=(0.0, 30.0),
    distance=(0.8, 1.0),
    fov_deg=(15.0, 60.0),
    share_on_sphere=0.0,
    distance_over_tangent=True,
)
