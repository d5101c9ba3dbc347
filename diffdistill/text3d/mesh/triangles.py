"""Triangle meshes: with a colour at each vertex, or with a texture.

Notable:
- arrays are NumPy's, are checked once, and cannot be written to;
- +z is up and azimuth 0 looks from +x, as in a field. Files of other axes are turned when they are written and read;
- faces are anticlockwise seen from outside, so the volume of a closed mesh is positive;
- colours are as a screen shows them (sRGB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffdistill.errors import UserError

_LEAST = 1e-30  # of a length, before it divides


class EmptyMeshError(UserError):
    """There is no surface: nothing is inside, or everything is."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with a colour at each vertex.

    Attributes:
        vertices: (N, 3) float32 positions.
        faces: (M, 3) int32 indexes of vertices.
        colours: (N, 3) float32 sRGB in [0, 1].

    Raises:
        UserError: a shape is another, a number is not finite, or an index or a colour is out of range.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray

    def __post_init__(self) -> None:
        n = _set_triangles(self)
        colours = _set(self, "colours", self.colours, np.float32, (n, 3))
        if n and (colours.min() < 0 or colours.max() > 1):
            raise UserError(f"colours span [{colours.min():g}, {colours.max():g}]; they must be in [0, 1]")


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """Triangles with a texture. Vertices along a seam are there several times, each with a place in the texture.

    Attributes:
        vertices: (N, 3) float32 positions.
        faces: (M, 3) int32 indexes of vertices.
        normals: (N, 3) float32 unit vectors, equal on both sides of a seam.
        uv: (N, 2) float32 in [0, 1]: u to the right, v upward; (0, 0) is the lower left corner of the texture.
        texture: (H, W, 3) uint8 sRGB; the first row is the upper one.

    Raises:
        UserError: a shape is another, a number is not finite, or an index or a coordinate is out of range.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    texture: np.ndarray

    def __post_init__(self) -> None:
        n = _set_triangles(self)
        _set(self, "normals", self.normals, np.float32, (n, 3))
        uv = _set(self, "uv", self.uv, np.float32, (n, 2))
        if n and (uv.min() < 0 or uv.max() > 1):
            raise UserError(f"texture coordinates span [{uv.min():g}, {uv.max():g}]; they must be in [0, 1]")
        texture = np.asarray(self.texture)
        if texture.ndim != 3 or texture.dtype != np.uint8 or texture.shape[2] != 3 or not texture.size:
            raise UserError(f"the texture is {texture.dtype} {texture.shape}; it must be uint8 (H, W, 3)")
        _set(self, "texture", texture, np.uint8, texture.shape)


def _set_triangles(mesh: Any) -> int:
    """Check vertices and faces of a mesh that is being made; returns the number of vertices."""
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    n = len(_set(mesh, "vertices", vertices, np.float32, (len(vertices), 3)))
    if faces.dtype.kind not in "iu":
        raise UserError(f"faces are {faces.dtype}; they must be integers")
    if faces.size and (faces.min() < 0 or faces.max() >= n):
        raise UserError(f"faces name vertices {faces.min()} .. {faces.max()}; there are {n}")
    _set(mesh, "faces", faces, np.int32, (len(faces), 3))
    return n


def _set(mesh: Any, name: str, value: Any, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    made = np.array(value, dtype, order="C")  # a copy, so that nobody else can write to it
    if made.shape != shape:
        raise UserError(f"{name} have the shape {made.shape}; it must be {shape}")
    if made.dtype.kind == "f" and not np.isfinite(made).all():
        raise UserError(f"{name} hold {int((~np.isfinite(made)).sum())} numbers that are NaN or infinite")
    made.setflags(write=False)
    object.__setattr__(mesh, name, made)
    return made


def face_vectors(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vectors (M, 3), float64, that are normal to the faces and point outward; their lengths are twice the areas."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    made: np.ndarray = np.cross(b - a, c - a)
    return made


def face_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Areas (M,), float64.

    >>> face_areas(np.eye(3), np.array([[0, 1, 2]])).round(4).tolist()  # sqrt(3) / 2
    [0.866]
    """
    made: np.ndarray = np.linalg.norm(face_vectors(vertices, faces), axis=1) / 2
    return made


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """What a closed mesh encloses, by the divergence theorem; negative where faces look inward.

    >>> corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    >>> round(volume(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])), 6)
    0.166667
    """
    first = vertices[faces[:, 0]].astype(np.float64)
    return float((first * face_vectors(vertices, faces)).sum() / 6)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3), float32: the mean of the normals of the faces around a vertex, weighted by their areas.

    A vertex of no area has the normal (0, 0, 1).
    """
    vectors = face_vectors(vertices, faces)
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(vectors[:, k], 3), minlength=len(vertices)) for k in range(3)], 1
    )
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    made = np.where(lengths > _LEAST, sums / np.maximum(lengths, _LEAST), [0.0, 0.0, 1.0])
    return made.astype(np.float32)
