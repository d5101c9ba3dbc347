"""What a head reads: features at points."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Features(Protocol):
    """Features of P objects, or of one table that all objects share.

    Attributes:
        channels: C.
    """

    channels: int

    def at(self, points: Tensor) -> Tensor:
        """Features at points.

        Args:
            points: (P, N, 3) in [-1, 1], or (1, N, 3) that all objects share, which is cheaper.

        Returns:
            (P, N, C). (1, N, C) where objects share the table and the points.
        """

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Features at all points of a grid.

        Args:
            x, y, z: (X,), (Y,), (Z,) in [-1, 1].

        Returns:
            (P, X Y Z, C), or (1, X Y Z, C) where objects share the table; z changes fastest.
        """
