"""Pictures of a mesh: its colours as they are, without light, nearest surface first.

    vertices --camera--> pixels and depth --scan conversion--> samples --z-buffer--> nearest face of each sample
                                               colour of vertices, or texture <--'--> mean of samples: picture

Notable:
- colours are not lit, since those of a field already are: so pictures can be compared with the field's own views;
- what is interpolated is divided by depth before (perspective), so textures do not swim;
- each pixel is the mean of several samples. Means are of sRGB, as where a field is rendered along rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.scan import covered
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh

_NEAR = 1e-3


class View(NamedTuple):
    """A picture of a mesh.

    Attributes:
        colour: (H, W, 3) float32 sRGB in [0, 1], on the background.
        opacity: (H, W) float32, the share of each pixel that the mesh covers.
        depth: (H, W) float32, the least distance from the camera's plane in each pixel; infinite where nothing is.
    """

    colour: np.ndarray
    opacity: np.ndarray
    depth: np.ndarray


def rasterised(
    mesh: Mesh | TexturedMesh,
    c2w: np.ndarray,
    fov_deg: float,
    size: int | tuple[int, int],
    supersample: int = 3,
    background: Sequence[float] = (1.0, 1.0, 1.0),
) -> View:
    """What a camera sees of a mesh.

    Args:
        mesh: with colours of vertices, or with a texture.
        c2w: (4, 4) camera to world: the columns are right, up, backward, and the position; an array, or a tensor.
        fov_deg: vertical field of view in degrees, in (0, 180). Pixels are square.
        size: of the picture in pixels: its side, or (height, width).
        supersample: samples along each side of a pixel, at least 1.
        background: sRGB in [0, 1].

    Raises:
        UserError: a value is out of range, or a part of the mesh is behind the camera.
    """
    height, width = (size, size) if isinstance(size, int) else size
    pose = np.asarray(c2w, np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise UserError(f"the camera's matrix has the shape {pose.shape}; it must be (4, 4), of finite numbers")
    if not 0 < fov_deg < 180:
        raise UserError(f"fov_deg is {fov_deg:g}; it must be in (0, 180)")
    if height < 1 or width < 1 or supersample < 1:
        raise UserError(f"a picture of {height}x{width} pixels with supersample {supersample} is not possible")
    if len(background) != 3 or min(background) < 0 or max(background) > 1:
        raise UserError(f"background is {tuple(background)}; it must be three numbers in [0, 1]")
    n = supersample
    places, depths = _projected(mesh.vertices, pose, fov_deg, height * n, width * n)
    depth, face, weights = _nearest(places[mesh.faces], depths[mesh.faces], height * n, width * n)
    hit = face >= 0
    samples = np.broadcast_to(np.asarray(background, np.float64), (height * n * width * n, 3)).copy()
    samples[hit] = _colours(mesh, face[hit], weights[hit])
    shape = (height, n, width, n)
    return View(
        samples.reshape(*shape, 3).mean((1, 3)).astype(np.float32),
        hit.reshape(shape).mean((1, 3)).astype(np.float32),
        depth.reshape(shape).min((1, 3)).astype(np.float32),
    )


def _projected(
    vertices: np.ndarray, pose: np.ndarray, fov_deg: float, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places in the picture, (N, 2) in samples, y downward, and distances (N,) from the camera's plane."""
    seen = (vertices.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
    depth = -seen[:, 2]
    if len(depth) and depth.min() < _NEAR:
        raise UserError(f"the mesh is up to {-depth.min():.3g} behind the camera; the camera must be outside of it")
    focal = height / 2 / math.tan(math.radians(fov_deg) / 2)
    x, y = width / 2 + focal * seen[:, 0] / depth, height / 2 - focal * seen[:, 1] / depth
    return np.stack([x, y], 1), depth


def _nearest(
    places: np.ndarray, depths: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each sample, in rows: its depth (S,), the nearest face (S,) or -1, and the weights (S, 3) in that face."""
    depth = np.full(height * width, np.inf)
    face = np.full(height * width, -1)
    weights = np.zeros((height * width, 3))
    for part in covered(places, width, height):
        shares = part.weights / depths[part.face]
        inverse = shares.sum(1)
        sample, away = part.y * width + part.x, 1 / inverse
        order = np.flatnonzero(away < depth[sample])
        order = order[np.argsort(-away[order], kind="stable")]  # the nearest last, which is the one that stays
        sample = sample[order]
        depth[sample], face[sample] = away[order], part.face[order]
        weights[sample] = (shares / inverse[:, None])[order]
    return depth, face, weights


def _colours(mesh: Mesh | TexturedMesh, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if isinstance(mesh, Mesh):
        made: np.ndarray = np.einsum("kc,kcd->kd", weights, mesh.colours[mesh.faces[face]])
        return made
    return sampled(mesh.texture, np.einsum("kc,kcd->kd", weights, mesh.uv[mesh.faces[face]]))


def sampled(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """A texture between its texels' centres, bilinear: (N, 3) in [0, 1].

    Args:
        texture: (H, W, 3) uint8.
        uv: (N, 2) in [0, 1], v upward. Beyond the outer centres the colour stays the same.
    """
    height, width = texture.shape[:2]
    x = (uv[:, 0] * width - 0.5).clip(0, width - 1)
    y = ((1 - uv[:, 1]) * height - 0.5).clip(0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    dx, dy = (x - left)[:, None], (y - top)[:, None]
    upper = texture[top, left] * (1 - dx) + texture[top, right] * dx
    lower = texture[bottom, left] * (1 - dx) + texture[bottom, right] * dx
    made: np.ndarray = (upper * (1 - dy) + lower * dy) / 255
    return made
