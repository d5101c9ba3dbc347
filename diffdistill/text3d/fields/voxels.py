"""Features in a box of voxels, read by trilinear interpolation.

Notable:
- the last axes of a box are z, y, x, as `grid_sample` wants them;
- the released code of the 3D convolutional generator of ScaleDreamer (arXiv 2407.02040) mixes objects with channels
  where there is more than one object. Here objects stay apart, and points that all objects share are looked up once.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .axes import voxels_on_axes
from .precision import at_least_float32, full_precision


def sample_voxels(voxels: Tensor, points: Tensor, corners: bool = False) -> Tensor:
    """Trilinear interpolation, in float32 at least.

    Args:
        voxels: (P, C, D, H, W), whose last axes are z, y, x; or (1, C, D, H, W) for all objects.
        points: (P, N, 3), as x, y, z in [-1, 1]; or (1, N, 3) for all objects.
        corners: True for outer voxels on the faces of the box, with the nearest voxel beyond them; False for voxels
            that fill the box, with zeros around it.

    Returns:
        (P, N, C), with P = 1 where both are for all objects.

    Raises:
        ValueError: the numbers of objects differ.
    """
    count, objects, channels = max(len(voxels), len(points)), len(voxels), voxels.shape[1]
    if not {objects, len(points)} <= {1, count}:
        raise ValueError(f"there are {objects} boxes of voxels and points for {len(points)}")
    voxels = at_least_float32(voxels)
    if objects > 1 and len(points) == 1:
        voxels = voxels.reshape(1, -1, *voxels.shape[2:])  # one look-up for all objects
    places = points.to(voxels.dtype)
    if objects == 1:
        places = places.reshape(1, -1, 3)
    mode = {"padding_mode": "border" if corners else "zeros", "align_corners": corners}
    with full_precision(voxels):
        made = F.grid_sample(voxels, places[:, None, None], **mode)  # type: ignore[arg-type]
    if objects == 1:
        return made.view(channels, len(points), -1).permute(1, 2, 0)
    return made.view(count, channels, -1).transpose(1, 2)


class Voxels:
    """Features of P objects, each in its box of voxels.

    Args:
        voxels: (P, C, D, H, W), whose last axes are z, y, x. They fill [-1, 1]^3, with zeros around.
    """

    def __init__(self, voxels: Tensor) -> None:
        self.voxels, self.channels = voxels, voxels.shape[1]

    def at(self, points: Tensor) -> Tensor:
        """Features (P, N, C) at points (P, N, 3) or (1, N, 3) in [-1, 1]."""
        return sample_voxels(self.voxels, points)

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Features (P, X Y Z, C) at the points of a grid."""
        with full_precision(self.voxels):
            return voxels_on_axes(self.voxels, x, y, z)
