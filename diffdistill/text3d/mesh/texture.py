"""A mesh with a texture: xatlas lays the triangles flat, and the colour at each texel is asked of the field.

    vertices, faces --xatlas--> uv --scan conversion--> texel: triangle, weights --> position --colour--> texture
                                                                                 `--> filled beyond the seams

Notable:
- no OpenGL: triangles are laid into texels by `scan`, on the CPU;
- a texel gets the colour at its own place on the surface, so a texture shows details finer than the mesh's faces;
- marching cubes makes slivers, and each would become a chart of its own (465 charts for a torus of 17,000 faces). So
  xatlas sees vertices that are moved towards their neighbours (13 charts, in less time); the mesh itself keeps its own;
- texels next to a chart get the colour of the nearest one in it, so that filtering across a seam finds no gap; all
  others get the mean colour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.linear import to_levels
from diffdistill.text3d.mesh.packages import needed
from diffdistill.text3d.mesh.queries import Colour, colours_at
from diffdistill.text3d.mesh.scan import covered
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh, vertex_normals

_TOWARDS_NEIGHBOURS = 0.5


@dataclass(frozen=True)
class TextureSettings:
    """How a texture is made.

    Attributes:
        size: texels along a side.
        padding: texels that are filled around each chart. Charts are about twice as far from each other.
        points_at_once: how many texels are evaluated at once.

    Raises:
        UserError: a value is out of range.
    """

    size: int = 1024
    padding: int = 3
    points_at_once: int = 1 << 18

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise UserError(f"the texture's size is {self.size}; it must be in 16 .. 4096")
        if not 0 <= self.padding <= 64:
            raise UserError(f"padding is {self.padding}; it must be in 0 .. 64 texels")
        if self.points_at_once < 1:
            raise UserError(f"points_at_once is {self.points_at_once}; it must be at least 1")


def textured(mesh: Mesh, colour: Colour, settings: TextureSettings | None = None, device: str = "cpu") -> TexturedMesh:
    """A mesh with a texture instead of colours of vertices.

    xatlas takes about 1 s for 10,000 faces and 25 s for 77,000, so a large mesh gets fewer faces first
    (`ExtractSettings.faces`); the texture keeps its details. A texture of 512^2 is then baked in 0.1 s.

    Args:
        mesh: its colours are not used.
        colour: a function of points (N, 3), float32 on `device`, that gives sRGB (N, 3), such as
            `queries.field_colour(field, index)`.
        settings: `TextureSettings()` where None.
        device: where the colours are computed.

    Raises:
        UserError: a colour is NaN or infinite, the mesh has no area, or xatlas is missing.
    """
    settings = settings or TextureSettings()
    source, faces, uv = unwrapped(mesh.vertices, mesh.faces, settings)
    vertices, normals = mesh.vertices[source], vertex_normals(mesh.vertices, mesh.faces)[source]
    texture = baked(vertices, faces, uv, colour, settings, device)
    return TexturedMesh(vertices, faces, normals, uv, texture)


def unwrapped(
    vertices: np.ndarray, faces: np.ndarray, settings: TextureSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles laid flat without overlap, by xatlas.

    Args:
        vertices: (N, 3).
        faces: (M, 3).
        settings: size and padding of the texture.

    Returns:
        source: (K,) which of the N vertices each new one is; those along seams are there several times.
        faces: (M, 3) int32 of the new vertices, in the given order.
        uv: (K, 2) float32 in [0, 1], v upward.

    Raises:
        UserError: xatlas is missing, or cannot lay the mesh flat.
    """
    xatlas = needed("xatlas")
    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    pack.resolution, pack.padding = settings.size, 2 * settings.padding
    atlas.add_mesh(_without_slivers(vertices, faces), np.ascontiguousarray(faces, np.uint32))
    atlas.generate(xatlas.ChartOptions(), pack)
    if atlas.atlas_count != 1:
        raise UserError(f"xatlas made {atlas.atlas_count} textures of a mesh of {len(faces)} faces; it should make one")
    source, triangles, uv = atlas.get_mesh(0)
    sides = np.array([atlas.width, atlas.height])  # not square: the shorter side of the texture is left empty
    return source, triangles.reshape(-1, 3).astype(np.int32), (uv * (sides / sides.max())).astype(np.float32)


def baked(
    vertices: np.ndarray,
    faces: np.ndarray,
    uv: np.ndarray,
    colour: Colour,
    settings: TextureSettings,
    device: str = "cpu",
) -> np.ndarray:
    """The texture (size, size, 3), uint8 sRGB, of triangles that are laid flat.

    Args:
        vertices: (N, 3) positions.
        faces: (M, 3).
        uv: (N, 2) in [0, 1], v upward; triangles do not overlap.
        colour: a function of points (N, 3), float32 on `device`, that gives sRGB (N, 3).
        settings: size of the texture, and how far it is filled beyond seams.
        device: where the colours are computed.

    Raises:
        UserError: a colour is NaN or infinite, or no texel is covered.
    """
    size = settings.size
    places = np.stack([uv[:, 0], 1 - uv[:, 1]], 1).astype(np.float64) * size
    texture = np.zeros((size, size, 3), np.float32)
    filled = np.zeros((size, size), bool)
    for part in covered(places[faces], size, size, settings.points_at_once):
        position = np.einsum("kc,kcd->kd", part.weights, vertices[faces[part.face]])
        texture[part.y, part.x] = colours_at(colour, position, settings.points_at_once, device)
        filled[part.y, part.x] = True
    if not filled.any():
        raise UserError(f"no texel of a texture of {size}x{size} is covered by the mesh's {len(faces)} faces")
    distance, (row, column) = needed("scipy.ndimage").distance_transform_edt(~filled, return_indices=True)
    near = distance < settings.padding + 1
    made = np.where(near[..., None], texture[row, column], texture[filled].mean(0))
    return to_levels(made)


def _without_slivers(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vertices moved halfway to the mean of their neighbours, (N, 3) float32."""
    start, end = (faces[:, k].ravel() for k in ([0, 1, 2], [1, 2, 0]))  # each edge of a closed mesh, once each way
    count = np.bincount(start, minlength=len(vertices))[:, None]
    sums = np.stack([np.bincount(start, vertices[end, k], len(vertices)) for k in range(3)], 1)
    moved = np.where(count > 0, sums / np.maximum(count, 1) - vertices, 0)
    return (vertices + _TOWARDS_NEIGHBOURS * moved).astype(np.float32)
