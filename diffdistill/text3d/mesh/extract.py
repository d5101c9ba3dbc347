"""From a field to triangles: marching cubes on a grid of signed distances, and the colour at each vertex.

    Field --coarse grid--> box of the object --fine grid--> signed distances --marching cubes--> vertices, faces
                                    `--> parts too small are dropped, faces made fewer --> colours at the vertices

Notable:
- the grid is padded by points that are outside, so an object that the box cuts is closed by flat faces in the box's
  sides;
- values are checked before, since marching cubes makes vertices that are NaN of them without a word;
- a surface that goes through a point of the grid would have faces of no area. So values next to zero are moved away
  from it: the surface moves there by a thousandth of the spacing;
- marching cubes cuts off sharp edges, by up to one spacing;
- by default a coarse grid finds the box of the object first, and all of the samples are spent in there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from diffdistill.errors import UserError
from diffdistill.text3d.field import Field
from diffdistill.text3d.mesh.clean import used_vertices, with_fewer_faces, without_small_parts
from diffdistill.text3d.mesh.grid import cuts_at, grid_around, whole_box
from diffdistill.text3d.mesh.packages import needed
from diffdistill.text3d.mesh.queries import Colour, colours, colours_at, distances
from diffdistill.text3d.mesh.triangles import EmptyMeshError, Mesh

__all__ = ["EmptyMeshError", "ExtractSettings", "Mesh", "extract_mesh", "extract_meshes", "mesh_from_grid"]

_AWAY = 1e-3  # from a sample, in parts of the spacing, is a vertex at least
_FAR = 1e6  # the padding's signed distance, in parts of the largest one


@dataclass(frozen=True)
class ExtractSettings:
    """How a mesh is made of a field.

    Attributes:
        resolution: samples along the longest side of the grid.
        coarse: samples along a side of the box in a first pass, which finds where the object is; 0 for none, then the
            grid spans the whole box. A detached part that the first pass misses by more than its spacing is lost.
        speck: detached parts whose area is a smaller share of the largest one's are dropped.
        largest_component: whether all parts but the largest are dropped, and hollows with them.
        faces: how many there may be at most; None for no limit.
        points_at_once: how many points, counted once for each object of the field, are evaluated at once.

    Raises:
        UserError: a value is out of range.
    """

    resolution: int = 128
    coarse: int = 32
    speck: float = 0.005
    largest_component: bool = False
    faces: int | None = None
    points_at_once: int = 1 << 18

    def __post_init__(self) -> None:
        if type(self.resolution) is not int or not 4 <= self.resolution <= 1024:
            raise UserError(f"resolution is {self.resolution!r}; it must be a whole number in 4 .. 1024")
        if self.coarse and not 8 <= self.coarse <= 512:
            raise UserError(f"coarse is {self.coarse}; it must be in 8 .. 512, or 0 for a single pass")
        if not 0 <= self.speck < 1:
            raise UserError(f"speck is {self.speck:g}; it must be in [0, 1)")
        if self.faces is not None and self.faces < 4:
            raise UserError(f"faces is {self.faces}; a closed mesh has at least 4")
        if self.points_at_once < 1:
            raise UserError(f"points_at_once is {self.points_at_once}; it must be at least 1")


def extract_mesh(field: Field, index: int = 0, settings: ExtractSettings | None = None, device: str = "cpu") -> Mesh:
    """The mesh of one object of a field.

    All objects of the field are evaluated, so for several of them `extract_meshes` is quicker.

    Args:
        field: of P objects.
        index: the object's number, from 0.
        settings: `ExtractSettings()` where None.
        device: where the field is.

    Raises:
        EmptyMeshError: there is no surface.
        UserError: the object is not there, a value of the field is NaN or infinite, or a package is missing.
    """
    if not 0 <= index < len(field):
        raise UserError(f"object {index} is asked for; the field has {len(field)}, numbered from 0")
    made = _extracted(field, [index], settings or ExtractSettings(), device)[0]
    if isinstance(made, EmptyMeshError):
        raise made
    return made


def extract_meshes(
    field: Field, settings: ExtractSettings | None = None, device: str = "cpu"
) -> list[Mesh | EmptyMeshError]:
    """The meshes of all objects of a field, which is asked for all of them at once.

    An object without a surface does not stop the others: in its place is the error, which says why.
    The arguments and errors are otherwise those of `extract_mesh`.
    """
    return _extracted(field, range(len(field)), settings or ExtractSettings(), device)


def mesh_from_grid(
    sdf: np.ndarray,
    colour: Colour,
    low: Sequence[float] = (-1.0, -1.0, -1.0),
    high: Sequence[float] = (1.0, 1.0, 1.0),
    settings: ExtractSettings | None = None,
) -> Mesh:
    """The mesh of signed distances on a grid.

    Args:
        sdf: (X, Y, Z), negative inside; the samples at the ends are on the sides of the box.
        colour: a function of points (N, 3), float32 on the CPU, that gives sRGB (N, 3).
        low: the corner (x, y, z) of the box where the first sample is.
        high: the corner where the last one is.
        settings: what is dropped, and how many faces there may be; the grid is the given one.

    Raises:
        EmptyMeshError: there is no surface.
        UserError: a value is NaN or infinite, the shape or the box is wrong, or a package is missing.
    """
    settings, sdf = settings or ExtractSettings(), np.asarray(sdf)
    if sdf.ndim != 3 or min(sdf.shape) < 2:
        raise UserError(f"the grid has the shape {sdf.shape}; it must be (X, Y, Z) with at least 2 samples each")
    if np.shape(low) != (3,) or np.shape(high) != (3,) or not (np.subtract(high, low) > 0).all():
        raise UserError(f"the box spans {tuple(low)} .. {tuple(high)}; each side must be longer than 0")
    vertices, faces = _surface(sdf, np.array(low, np.float64), np.array(high, np.float64), settings)
    return Mesh(vertices, faces, colours_at(colour, vertices, settings.points_at_once))


def _extracted(
    field: Field, indexes: Iterable[int], settings: ExtractSettings, device: str
) -> list[Mesh | EmptyMeshError]:
    whole = whole_box(field.radius, settings.resolution)
    grids = {index: whole for index in indexes}
    if settings.coarse:
        coarse = whole_box(field.radius, settings.coarse)
        found = distances(field, {index: coarse for index in grids}, settings.points_at_once, device)
        for index, sdf in found.items():
            _check_finite(sdf, np.array(coarse.low), coarse.spacing, f"object {index}: ")
            grids[index] = grid_around(sdf, coarse, field.radius, settings.resolution) or whole
    values = distances(field, grids, settings.points_at_once, device)
    cut = [index for index, sdf in values.items() if cuts_at(sdf, grids[index], field.radius)]
    if cut:  # the first pass did not see all of these
        grids.update((index, whole) for index in cut)
        values.update(distances(field, {index: whole for index in cut}, settings.points_at_once, device))
    surfaces: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    empty: dict[int, EmptyMeshError] = {}
    for index, sdf in values.items():
        grid = grids[index]
        try:
            surfaces[index] = _surface(sdf, np.array(grid.low), grid.high, settings, f"object {index}: ")
        except EmptyMeshError as error:
            empty[index] = error
    painted = colours(field, {i: vertices for i, (vertices, _) in surfaces.items()}, settings.points_at_once, device)
    return [empty[i] if i in empty else Mesh(*surfaces[i], painted[i]) for i in grids]


def _surface(
    sdf: np.ndarray, low: np.ndarray, high: np.ndarray, settings: ExtractSettings, whose: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) float32 and faces (M, 3) int32 of signed distances (X, Y, Z) over a box."""
    spacing = (high - low) / (np.array(sdf.shape) - 1)
    _check_finite(sdf, low, spacing, whose)
    inside = sdf < 0
    if not inside.any():
        raise EmptyMeshError(f"{whose}no surface: the least signed distance is {sdf.min():g}, so nothing is inside")
    if inside.all():
        raise EmptyMeshError(f"{whose}no surface: the largest signed distance is {sdf.max():g}, so all is inside")
    padded = np.pad(_away_from_zero((sdf / np.abs(sdf).max()).astype(np.float32)), 1, constant_values=_FAR)
    # skimage's default direction makes faces outward where the inside is negative; its normals would point inward
    found, faces, _, _ = needed("skimage.measure").marching_cubes(padded, 0.0)
    vertices = np.clip(low + (found.astype(np.float64) - 1) * spacing, low, high).astype(np.float32)
    vertices, faces = _joined_at_sides(vertices, faces, low, high)
    vertices, faces = without_small_parts(vertices, faces, settings.speck, settings.largest_component)
    if settings.faces is not None:
        vertices, faces = with_fewer_faces(vertices, faces, settings.faces)
    return vertices, faces.astype(np.int32)


def _check_finite(sdf: np.ndarray, low: np.ndarray, spacing: np.ndarray | float, whose: str) -> None:
    bad = np.flatnonzero(~np.isfinite(sdf))
    if len(bad):
        place = ", ".join(f"{v:.3g}" for v in low + spacing * np.array(np.unravel_index(bad[0], sdf.shape)))
        raise UserError(
            f"{whose}the signed distance is NaN or infinite at {len(bad)} of {sdf.size} points, "
            f"the first at ({place}); the field diverged"
        )


def _away_from_zero(sdf: np.ndarray) -> np.ndarray:
    """Distances whose size is at least `_AWAY` of the typical change between two neighbours across the surface."""
    steps = []
    for axis in range(3):
        first, second = (sdf.take(range(k, sdf.shape[axis] - 1 + k), axis) for k in (0, 1))
        across = (first < 0) != (second < 0)
        steps.append(np.abs(first[across] - second[across]))
    least = _AWAY * float(np.median(np.concatenate(steps)))
    return np.where(sdf < 0, np.minimum(sdf, -least), np.maximum(sdf, least))


def _joined_at_sides(
    vertices: np.ndarray, faces: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At edges and corners of the box, vertices of the padding fall together: they are joined."""
    at_sides = np.flatnonzero(((vertices <= low.astype(np.float32)) | (vertices >= high.astype(np.float32))).any(1))
    if not len(at_sides):
        return vertices, faces
    _, first, of_which = np.unique(vertices[at_sides], axis=0, return_index=True, return_inverse=True)
    number = np.arange(len(vertices))
    number[at_sides] = at_sides[first[of_which.ravel()]]
    faces = number[faces]
    a, b, c = faces.T
    return used_vertices(vertices, faces[(a != b) & (b != c) & (c != a)])
