"""Whether the surface of an object is closed, and how many parts it has.

    signed distances on a grid --marching cubes--> triangles --> edges --> closed?
                                                        `--> connected parts --by area--> components, specks

Notable:
- the mesh is what `mesh.extract` makes of the grid before small parts are dropped, and before faces are made fewer;
- a part is a connected surface. So a hollow inside of an object counts as a part, as a detached piece does;
- it is extracted at the grid of the volumes, which is coarser than the mesh that is written to a file: it sees the
  parts of the field, not the quality of a file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffdistill.text3d.mesh.clean import face_components
from diffdistill.text3d.mesh.extract import EmptyMeshError, ExtractSettings, mesh_from_grid
from diffdistill.text3d.mesh.triangles import face_areas
from diffdistill.text3d.objects import is_watertight

SPECK = ExtractSettings().speck


class Surface(NamedTuple):
    """The surface of an object.

    Attributes:
        watertight: whether each edge belongs to two faces that go along it in opposite directions; False if there is no
            surface.
        components: connected parts, without specks; 0 if there is no surface.
        specks: parts with a smaller share of the largest part's area than 0.5 %, which extraction drops by default.
    """

    watertight: bool
    components: int
    specks: int


def surface_of(sdf: Tensor, radius: float) -> Surface:
    """The surface of signed distances (R, R, R), whose outer points lie on the faces of a box of half-side `radius`.

    Raises:
        UserError: a package is missing.
    """
    if not torch.isfinite(sdf).all():
        return Surface(False, 0, 0)
    low, high = (-radius,) * 3, (radius,) * 3
    try:
        mesh = mesh_from_grid(sdf.float().cpu().numpy(), _grey, low, high, ExtractSettings(speck=0.0))
    except EmptyMeshError:
        return Surface(False, 0, 0)
    parts = face_components(len(mesh.vertices), mesh.faces)
    areas = np.bincount(parts, face_areas(mesh.vertices, mesh.faces))
    large = int((areas >= SPECK * areas.max()).sum())
    return Surface(is_watertight(mesh.faces), large, len(areas) - large)


def _grey(points: Tensor) -> Tensor:
    return torch.full_like(points, 0.5)
