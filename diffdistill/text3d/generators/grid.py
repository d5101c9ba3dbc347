"""Fields on regular grids, and fields that are such a grid.

    field --field_on_grid--> sdf (P, R, R, R), colour (P, R, R, R, 3) --GridField--> a field again, by interpolation

Notable:
- grids are indexed x, y, z, and their outer points lie on the box's faces, as np.linspace(-radius, radius, R) has them;
- points are asked in chunks, so that memory is that of the grid and of one chunk. With gradients on, autograd keeps
  what each chunk needs for its gradient;
- a field that can interpolate axis by axis (`sdf_on_axes`, `on_axes` of `FeatureField`) is asked so, which is faster
  and says the same. Any other field is asked at points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffdistill.text3d.field import Field, FieldValues
from diffdistill.text3d.fields.axes import points_of_axes, voxels_on_axes
from diffdistill.text3d.fields.precision import full_precision
from diffdistill.text3d.fields.voxels import sample_voxels

CHUNK = 1 << 17  # points


@runtime_checkable
class AxisField(Protocol):
    """A field that is asked at the points of a grid, by their axes."""

    def sdf_on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Signed distances (P, X Y Z); z changes fastest."""

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> FieldValues:
        """Signed distances (P, X Y Z) and colours (P, X Y Z, 3); z changes fastest."""


def grid_axis(radius: float, resolution: int, device: torch.device | None = None) -> Tensor:
    """Places of a grid's points along an axis, float32 (R,), which include both faces of the box.

    >>> grid_axis(2.0, 5).tolist()
    [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    return torch.linspace(-radius, radius, resolution, dtype=torch.float64, device=device).float()


def field_on_grid(
    field: Field, resolution: int, chunk: int = CHUNK, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """A field's values at the points of a grid.

    Args:
        field: P objects.
        resolution: R, points along a side, 2 or more.
        chunk: points to ask for at once, at most; at least 1.
        device: of the points; None for `field.device` if there is one, or else the CPU.

    Returns:
        Signed distances (P, R, R, R) and colours (P, R, R, R, 3), indexed x, y, z.

    Raises:
        ValueError: `resolution` or `chunk` is too small.
    """

    def ask(x: Tensor, y: Tensor, z: Tensor) -> FieldValues:
        return field.on_axes(x, y, z) if isinstance(field, AxisField) else field(points_of_axes(x, y, z))

    shape = len(field), resolution, resolution, resolution
    sdf, colour = _in_chunks(ask, _axis(field, resolution, device), chunk)
    return sdf.view(shape), colour.view(*shape, 3)


def sdf_on_grid(field: Field, resolution: int, chunk: int = CHUNK, device: torch.device | None = None) -> Tensor:
    """Signed distances alone, (P, R, R, R), for less; see `field_on_grid`."""

    def ask(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor]:
        if isinstance(field, AxisField):
            return (field.sdf_on_axes(x, y, z),)
        return (field.sdf(points_of_axes(x, y, z)),)

    (sdf,) = _in_chunks(ask, _axis(field, resolution, device), chunk)
    return sdf.view(len(field), resolution, resolution, resolution)


def _axis(field: Field, resolution: int, device: torch.device | None) -> Tensor:
    if resolution < 2:
        raise ValueError(f"resolution is {resolution}; it must be 2 or more")
    return grid_axis(field.radius, resolution, device or getattr(field, "device", None))


def _in_chunks(
    ask: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]], axis: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """The values (P, R^3, ...) of all chunks, one after another."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be 1 or more")
    parts: list[tuple[Tensor, ...]] = []
    made: tuple[Tensor, ...] = ()
    at = 0
    for axes in _blocks(axis, chunk):
        found = tuple(ask(*axes))
        if torch.is_grad_enabled():
            parts.append(found)
            continue
        made = made or tuple(x.new_empty(len(x), len(axis) ** 3, *x.shape[2:]) for x in found)
        for whole, part in zip(made, found, strict=True):
            whole[:, at : at + part.shape[1]] = part
        at += found[0].shape[1]
    return tuple(torch.cat(column, 1) for column in zip(*parts, strict=True)) if parts else made


def _blocks(axis: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Axes of blocks that follow one another where z changes fastest: planes of x, or rows of y, or parts of rows."""
    side = len(axis)
    planes, rows = max(1, chunk // side**2), max(1, chunk // side)
    for xs in axis.split(planes):
        for ys in axis.split(side if chunk >= side**2 else rows):
            for zs in axis.split(side if chunk >= side else chunk):
                yield xs, ys, zs


class GridField:
    """A field that is a grid of values, read by trilinear interpolation; implements `Field`.

    Beyond the box a point has the values of the nearest one inside.

    Args:
        sdf: (P, R, R, R), indexed x, y, z, with outer points on the faces of the box.
        colour: (P, R, R, R, 3).
        radius: half the side of the box.

    Raises:
        ValueError: the shapes do not fit.
    """

    def __init__(self, sdf: Tensor, colour: Tensor, radius: float) -> None:
        if sdf.dim() != 4 or len(set(sdf.shape[1:])) != 1 or colour.shape != (*sdf.shape, 3):
            raise ValueError(f"shapes are {tuple(sdf.shape)}, {tuple(colour.shape)}; not (P, R, R, R), (P, R, R, R, 3)")
        self.sdf_grid, self.colour_grid, self.radius, self.device = sdf, colour, radius, sdf.device
        self._sdf, self._colour = sdf[:, None], colour.permute(0, 4, 1, 2, 3)  # the last axes are x, y, z

    @classmethod
    def of(cls, field: Field, resolution: int, chunk: int = CHUNK) -> GridField:
        """A field, read at the points of a grid; see `field_on_grid`."""
        return cls(*field_on_grid(field, resolution, chunk), field.radius)

    def __len__(self) -> int:
        return len(self.sdf_grid)

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distances (P, N) at points (P, N, 3), or (1, N, 3) for all objects."""
        return self._read(self._sdf, points)[..., 0]

    def __call__(self, points: Tensor) -> FieldValues:
        """Signed distances (P, N) and colours (P, N, 3) at points (P, N, 3), or (1, N, 3) for all objects."""
        return FieldValues(self.sdf(points), self._read(self._colour, points))

    def sdf_on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Signed distances (P, X Y Z) at the points of a grid; z changes fastest."""
        return self._on_axes(self._sdf, x, y, z)[..., 0]

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> FieldValues:
        """Signed distances (P, X Y Z) and colours (P, X Y Z, 3) at the points of a grid; z changes fastest."""
        return FieldValues(self.sdf_on_axes(x, y, z), self._on_axes(self._colour, x, y, z))

    def _read(self, values: Tensor, points: Tensor) -> Tensor:
        if len(points) not in (1, len(self)):
            raise ValueError(f"points are for {len(points)} objects; there are {len(self)}")
        found = sample_voxels(values, points.flip(-1) / self.radius, corners=True)
        return found.expand(len(self), -1, -1)

    def _on_axes(self, values: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        with full_precision(values):
            x, y, z = x / self.radius, y / self.radius, z / self.radius
            return voxels_on_axes(values.transpose(2, 4), x, y, z, corners=True)
