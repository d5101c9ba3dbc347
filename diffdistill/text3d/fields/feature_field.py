"""A field made of features and heads: sdf(x) = network(features(x)) + |x| - r0.

The network says little at first, so that each object begins as a sphere of radius r0. Source: the geometry of
ScaleDreamer (arXiv 2407.02040). All of it runs in float32, under autocast too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.text3d.field import FieldValues

from .axes import points_of_axes
from .features import Features
from .heads import Heads
from .precision import at_least_float32, full_precision


class FeatureField:
    """P objects; implements `Field`.

    Outside of the box a field says what its features say there (`at` of each), which nobody should ask for.

    Args:
        features: of P objects, or of a table that they share.
        heads: the networks that read them.
        count: P.
        radius: half the side of the box.
        device: of points.
    """

    def __init__(self, features: Features, heads: Heads, count: int, radius: float, device: torch.device) -> None:
        self.features, self.heads, self.count, self.radius, self.device = features, heads, count, radius, device

    def __len__(self) -> int:
        return self.count

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distances (P, N) at points (P, N, 3), or (1, N, 3) for all objects.

        Raises:
            ValueError: the points have another shape.
        """
        points = self._checked(points)
        with full_precision(points):
            return self._shaped(self.heads.distance(self.features.at(points / self.radius)), points)

    def __call__(self, points: Tensor) -> FieldValues:
        """Signed distances (P, N) and colours (P, N, 3) at points (P, N, 3), or (1, N, 3) for all objects.

        Raises:
            ValueError: the points have another shape.
        """
        points = self._checked(points)
        with full_precision(points):
            distance, colour = self.heads.both(self.features.at(points / self.radius))
            return FieldValues(self._shaped(distance, points), colour.expand(self.count, -1, -1))

    def sdf_on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Signed distances at the points of a grid, the same as those of `sdf`, for less.

        Args:
            x, y, z: (X,), (Y,), (Z,), in the box.

        Returns:
            (P, X Y Z); z changes fastest.
        """
        x, y, z = (at_least_float32(axis) for axis in (x, y, z))
        with full_precision(x):
            features = self.features.on_axes(x / self.radius, y / self.radius, z / self.radius)
            return self._shaped(self.heads.distance(features), points_of_axes(x, y, z))

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> FieldValues:
        """Signed distances (P, X Y Z) and colours (P, X Y Z, 3) at the points of a grid; see `sdf_on_axes`."""
        x, y, z = (at_least_float32(axis) for axis in (x, y, z))
        with full_precision(x):
            features = self.features.on_axes(x / self.radius, y / self.radius, z / self.radius)
            distance, colour = self.heads.both(features)
            return FieldValues(self._shaped(distance, points_of_axes(x, y, z)), colour.expand(self.count, -1, -1))

    def _shaped(self, distance: Tensor, points: Tensor) -> Tensor:
        sphere = torch.linalg.vector_norm(points, dim=-1) - self.heads.settings.sphere
        return (distance + sphere).expand(self.count, -1)

    def _checked(self, points: Tensor) -> Tensor:
        if points.dim() != 3 or points.shape[2] != 3 or len(points) not in (1, self.count):
            raise ValueError(
                f"points have shape {tuple(points.shape)}; they must be ({self.count}, N, 3), or (1, N, 3) for all"
            )
        return at_least_float32(points)
