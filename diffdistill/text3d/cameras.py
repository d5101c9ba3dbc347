"""Cameras that look at the middle of the box, their rays, and where these enter and leave it.

              +z, up
               |          o  camera, at distance (cos el cos az, cos el sin az, sin el)
               |        /
               |      /  it looks at the origin; its right is (-sin az, cos az, 0)
               |    /
               |  /
      +y ------+------ +x, the front: what azimuth 0 sees
        azimuth 90

Notable:
- directions have length 1, so that a place t along a ray is a distance, in the units of the box;
- the field of view is vertical; row 0 of an image is its top, and rays go through the middles of pixels;
- near and far are where a ray enters and leaves the box (or a ball in it), not fixed planes: the published far plane of
  4 leaves a part of the cameras of multi-view settings without the object.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import UserError, shown

Region = Literal["box", "ball"]


class Rays(NamedTuple):
    """Half lines.

    Attributes:
        origins: (..., 3), in the units of the box.
        directions: (..., 3), of length 1.
    """

    origins: Tensor
    directions: Tensor


class Interval(NamedTuple):
    """The part of each ray within the box or ball.

    Attributes:
        near: (...) distance from the origin of the ray at which it enters; 0 where it starts inside or misses.
        far: (...) distance at which it leaves; 0 where it misses.
        hit: (...) whether the ray meets the inside at all, as booleans.
    """

    near: Tensor
    far: Tensor
    hit: Tensor


@dataclass(frozen=True, eq=False)
class Cameras:
    """V cameras that look at the origin, upright.

    Attributes:
        elevation_deg: (V,) angle above the plane z = 0, in [-90, 90].
        azimuth_deg: (V,) angle from +x towards +y; 0 is the front.
        distance: (V,) from the origin, above 0, in the units of the box.
        fov_deg: (V,) vertical field of view, between 0 and 180.

    Raises:
        UserError: a value cannot be that of a camera; the message says which camera it is.

    >>> Cameras.of([0.0], [90.0], [2.0], [40.0]).positions().round(decimals=4).abs().tolist()
    [[0.0, 2.0, 0.0]]
    """

    elevation_deg: Tensor
    azimuth_deg: Tensor
    distance: Tensor
    fov_deg: Tensor

    def __post_init__(self) -> None:
        for name, values in self._named():
            if values.dim() != 1 or len(values) != len(self.distance) or not values.is_floating_point():
                raise UserError(
                    f"{name} of cameras is {shown(tuple(values.shape))} of {values.dtype}; "
                    f"it must be one floating-point number for each of {self.distance.numel()} cameras"
                )
        limits = {
            "elevation_deg": (self.elevation_deg.abs() <= 90, "in [-90, 90]"),
            "azimuth_deg": (self.azimuth_deg.isfinite(), "finite"),
            "distance": ((self.distance > 0) & self.distance.isfinite(), "above 0, and finite"),
            "fov_deg": ((self.fov_deg > 0) & (self.fov_deg < 180), "between 0 and 180"),
        }
        for name, (right, what) in limits.items():
            if not bool(right.all()):
                at = int((~right).nonzero()[0])
                raise UserError(f"{name} of camera {at} is {float(getattr(self, name)[at]):g}; it must be {what}")

    @classmethod
    def of(
        cls, elevation_deg: list[float], azimuth_deg: list[float], distance: list[float], fov_deg: list[float]
    ) -> Cameras:
        """Cameras of plain numbers."""
        return cls(
            *(torch.tensor(values, dtype=torch.float32) for values in (elevation_deg, azimuth_deg, distance, fov_deg))
        )

    def __len__(self) -> int:
        """V, the number of cameras."""
        return len(self.distance)

    def __getitem__(self, which: slice | list[int]) -> Cameras:
        """Some of the cameras."""
        return Cameras(*(values[which] for _, values in self._named()))

    def to(self, target: torch.device | torch.dtype | str) -> Cameras:
        """The cameras on another device, or in another floating-point type."""
        return Cameras(*(values.to(target) for _, values in self._named()))

    def positions(self) -> Tensor:
        """Where the cameras are, (V, 3)."""
        return self.to_world()[:, :3, 3]

    def to_world(self) -> Tensor:
        """Matrices (V, 4, 4) from a camera's coordinates to the world's; their columns are right, up, back, position.

        They are of closed form, and so also hold for cameras straight above or below.
        """
        elevation, azimuth = torch.deg2rad(self.elevation_deg), torch.deg2rad(self.azimuth_deg)
        (sin_el, cos_el), (sin_az, cos_az) = ((angle.sin(), angle.cos()) for angle in (elevation, azimuth))
        zero = torch.zeros_like(sin_el)
        right = torch.stack([-sin_az, cos_az, zero], -1)
        up = torch.stack([-sin_el * cos_az, -sin_el * sin_az, cos_el], -1)
        back = torch.stack([cos_el * cos_az, cos_el * sin_az, sin_el], -1)
        top = torch.stack([right, up, back, back * self.distance[:, None]], -1)
        last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(self), 1, 4)
        return torch.cat([top, last], 1)

    def rays(self, height: int, width: int) -> Rays:
        """Rays through the middles of the pixels of images of a size; both tensors are (V, height, width, 3)."""
        if height < 1 or width < 1:
            raise UserError(f"an image of {height} x {width} pixels has none; both sides must be 1 or more")
        matrix = self.to_world()
        half = torch.tan(torch.deg2rad(self.fov_deg) / 2)[:, None, None]
        rows = 1 - (torch.arange(height, device=half.device, dtype=half.dtype) * 2 + 1) / height
        columns = (torch.arange(width, device=half.device, dtype=half.dtype) * 2 + 1 - width) / height
        y, x = torch.broadcast_tensors(half * rows[:, None], half * columns)
        inner = torch.stack([x, y, -torch.ones_like(x)], -1)
        # a sum of products and not a matrix product, which autocast would compute in half precision
        directions = (matrix[:, None, None, :3, :3] * inner[..., None, :]).sum(-1)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return Rays(matrix[:, None, None, :3, 3].expand_as(directions), directions)

    def described(self, which: int) -> str:
        """One camera, for a message."""
        elevation, azimuth, distance, fov = (float(values[which]) for _, values in self._named())
        return (
            f"camera {which} (elevation {elevation:g}, azimuth {azimuth:g}, distance {distance:g}, "
            f"field of view {fov:g} degrees)"
        )

    def _named(self) -> list[tuple[str, Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def box_interval(rays: Rays, radius: float) -> Interval:
    """Where rays enter and leave the box [-radius, radius]^3.

    A ray that only touches an edge or a corner misses. The slabs of the three axes are met one by one (Kay and Kajiya,
    1986); a ray parallel to a slab meets it everywhere or nowhere.
    """
    origins, directions = rays
    parallel = directions == 0
    step = torch.where(parallel, torch.ones_like(directions), directions)
    first, second = (-radius - origins) / step, (radius - origins) / step
    infinite = torch.full_like(step, torch.inf)
    within = torch.where(origins.abs() < radius, infinite, -infinite)  # of a parallel ray: the whole line, or nothing
    near = torch.where(parallel, -within, torch.minimum(first, second)).amax(-1).clamp_min(0)
    far = torch.where(parallel, within, torch.maximum(first, second)).amin(-1)
    return _marked(near, far)


def ball_interval(rays: Rays, radius: float) -> Interval:
    """Where rays enter and leave the ball around the origin; a ray that only touches it misses."""
    along = (rays.origins * rays.directions).sum(-1)
    apart = (rays.origins - along[..., None] * rays.directions).square().sum(-1)  # squared distance from the middle
    half = (radius**2 - apart).clamp_min(0).sqrt()
    return _marked((-along - half).clamp_min(0), -along + half)


def interval(rays: Rays, radius: float, region: Region = "box") -> Interval:
    """Where rays enter and leave the box of half-side `radius`, or the ball within it."""
    return (box_interval if region == "box" else ball_interval)(rays, radius)


def _marked(near: Tensor, far: Tensor) -> Interval:
    hit = far > near
    return Interval(near.where(hit, torch.zeros_like(near)), far.where(hit, torch.zeros_like(far)), hit)


def require_sight(cameras: Cameras, hit: Tensor, radius: float) -> None:
    """Raise UserError for the first camera none of whose rays meets the box or ball.

    Args:
        cameras: V of them.
        hit: (V, H, W) from `interval`.
        radius: half the side of the box, for the message.
    """
    blind = ~hit.flatten(1).any(1)
    if bool(blind.any()):
        height, width = hit.shape[1:]
        raise UserError(
            f"{cameras.described(int(blind.nonzero()[0]))} sees nothing of the box of half-side {radius:g} in "
            f"{width}x{height} pixels; bring it nearer, or give it a narrower field of view or more pixels"
        )
