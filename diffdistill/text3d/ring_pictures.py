"""Pictures from a ring of cameras around objects: of their fields, or of a mesh.

    field --baked on a grid--> table --each view's sparse product--> pictures (P, V, S, S, 3)
    mesh --rasterised------------------------------------------------> pictures (V, S, S, 3)
    pictures --save_turn--> strip (.png: a row for each object), or a turn (.gif, .mp4: the objects beside each other)

Notable:
- the first view is the front, and the camera goes anticlockwise, seen from above;
- the distance is three times the half side of the box, so that the ball in the box fills the picture;
- the views of a field are prepared one after another, so memory is that of one view: 250 MB for 256 pixels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffdistill.errors import UserError

from .baked import bake, render_baked
from .baked_views import Grid, bake_views
from .camera_ranges import orbit
from .cameras import Cameras
from .field import Field
from .mesh.linear import to_levels
from .mesh.rasterise import rasterised
from .mesh.triangles import Mesh, TexturedMesh
from .mesh.turntable import save_gif, save_mp4, save_strip
from .things.viewpoints import DISTANCE, FOV_DEG

TURNS = (".png", ".gif", ".mp4")


@dataclass(frozen=True)
class Ring:
    """A ring of cameras, and how views of fields are made from there.

    Args:
        views: V, how many cameras there are; they are 360 / V degrees apart.
        size: S, the side of a picture in pixels.
        elevation_deg: how far above the middle of the object they are.
        nodes: along a side of the grid on which a field is asked. Details below its spacing are lost.
        samples: along each ray.

    Raises:
        UserError: a number is out of its range.
    """

    views: int = 8
    size: int = 128
    elevation_deg: float = 20.0
    nodes: int = 64
    samples: int = 64

    def __post_init__(self) -> None:
        for name, least, most in (("views", 1, 360), ("size", 16, 512), ("nodes", 4, 256), ("samples", 2, 512)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)}; it must be in {least} .. {most}")
        if not -90 <= self.elevation_deg <= 90:
            raise UserError(f"elevation_deg is {self.elevation_deg:g}; it must be in [-90, 90]")

    def cameras(self, radius: float) -> Cameras:
        """The cameras around a box of half side `radius`."""
        return orbit(self.views, [self.elevation_deg], DISTANCE * radius, FOV_DEG)


class FieldPictures(NamedTuple):
    """Pictures of P objects.

    Attributes:
        pictures: (P, V, S, S, 3) uint8 sRGB, on white.
        opacity: (P, V), the mean opacity of each picture in [0, 1]; 0 where nothing is seen.
    """

    pictures: np.ndarray
    opacity: np.ndarray


@torch.no_grad()
def field_pictures(field: Field, sharpness: float, ring: Ring | None = None) -> FieldPictures:
    """Pictures of all objects of a field, without a mesh.

    Args:
        field: P objects, such as `generate_field` makes.
        sharpness: of the field's surface: the model's `sharpness`.
        ring: `Ring()` where None.

    Raises:
        UserError: the field is NaN or infinite.
    """
    ring = ring or Ring()
    device = getattr(field, "device", None) or torch.device("cpu")
    grid = Grid(ring.nodes, field.radius).to(device)
    baked = bake(field, grid)
    bad = ~(baked.sdf.isfinite() & baked.colour.isfinite().all(0)).all(0)
    if bool(bad.any()):
        which = int(bad.nonzero()[0])
        raise UserError(f"object {which}: the field is NaN or infinite where it is to be seen; it diverged")
    pictures = np.empty((len(field), ring.views, ring.size, ring.size, 3), np.uint8)
    opacity = np.empty((len(field), ring.views))
    cameras = ring.cameras(field.radius).to(device)
    for k in range(ring.views):
        views = bake_views(cameras[k : k + 1], grid, ring.size, ring.size, ring.samples)
        made = render_baked(baked, views, sharpness)
        pictures[:, k] = to_levels(made.colour[:, 0].permute(0, 2, 3, 1).cpu().numpy())
        opacity[:, k] = made.opacity[:, 0].mean((1, 2)).cpu().numpy()
    return FieldPictures(pictures, opacity)


def mesh_pictures(mesh: Mesh | TexturedMesh, ring: Ring | None = None, radius: float = 1.0) -> np.ndarray:
    """Pictures of a mesh, (V, S, S, 3) uint8 sRGB, on white: its colours as they are, without light.

    Args:
        mesh: in the box of half side `radius`.
        ring: `Ring()` where None.
        radius: half the side of the field's box.
    """
    ring = ring or Ring()
    poses = ring.cameras(radius).to_world().numpy()
    return np.stack([to_levels(rasterised(mesh, pose, FOV_DEG, ring.size).colour) for pose in poses])


def save_turn(pictures: np.ndarray, path: str | os.PathLike[str], fps: float = 12.0, overwrite: bool = False) -> None:
    """Write the pictures around objects as one file.

    Args:
        pictures: (P, V, S, S, 3) uint8.
        path: ends in .png, for a strip with a row for each object; or in .gif or .mp4, for objects beside each other
            that turn.
        fps: pictures a second.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: the ending is another, the file is there already, or an MP4 was asked for and there is no ffmpeg.
    """
    ending = Path(path).suffix.lower()
    objects, views = pictures.shape[:2]
    if ending == ".png":
        save_strip(list(pictures.reshape(-1, *pictures.shape[2:])), path, columns=views, overwrite=overwrite)
    elif ending in TURNS:
        columns = math.ceil(math.sqrt(objects))
        frames = [_beside(pictures[:, k], columns) for k in range(views)]
        (save_gif if ending == ".gif" else save_mp4)(frames, path, fps=fps, overwrite=overwrite)
    else:
        raise UserError(f"{path} ends in {ending or 'nothing'}; pictures around objects go to .png, .gif or .mp4")


def _beside(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (P, H, W, 3) as one, in rows of so many; places that are left are white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    whole = np.full((rows * columns, height, width, 3), 255, np.uint8)
    whole[:count] = pictures
    return whole.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
