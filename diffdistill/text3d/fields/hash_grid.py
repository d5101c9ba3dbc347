"""Multi-resolution hash grid (Instant-NGP, arXiv 2201.05989) in plain torch.

    point --each level: the 8 corners of its cell--> rows of the level's table --trilinear--> features of all levels

Notable:
- level l has ceil(base growth^l) vertices along a side, and the outer ones lie on the faces of the box;
- a level that fits into the table is dense: vertex (x, y, z) has the row x + side y + side^2 z. For a finer level the
  row is (x xor 2654435761 y xor 805459861 z) mod the table's length (eq. 4), so that vertices share rows;
- a table is read by `index_select`, whose gradient is a sum into a table. On a GPU the order of such sums varies, and
  the last bits of gradients with it; values do not vary;
- at the default sizes there are 12.6 million parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .axes import points_of_axes
from .precision import at_least_float32, full_precision
from .ranges import check_number, check_whole

PRIMES = (1, 2654435761, 805459861)
CORNERS = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))


@dataclass(frozen=True)
class HashGridSettings:
    """Grids of several resolutions, of which the finer ones are hashed.

    Args:
        levels: number of resolutions.
        features: of a vertex, in each level.
        log2_table: a level's table has 2^log2_table rows at most.
        base: vertices along a side of the coarsest level.
        growth: ratio of one level's side to that of the level before.
        start: features are uniform in [-start, start] at first.

    Raises:
        UserError: a setting is out of its range.
    """

    levels: int = 16
    features: int = 2
    log2_table: int = 19
    base: int = 16
    growth: float = 1.4473
    start: float = 1e-4

    def __post_init__(self) -> None:
        check_whole("grid.levels", self.levels, 1, 32)
        check_whole("grid.features", self.features, 1, 64)
        check_whole("grid.log2_table", self.log2_table, 1, 30)
        check_whole("grid.base", self.base, 2, 1024)
        check_number("grid.growth", self.growth, 0.999, 4.0)
        check_number("grid.start", self.start, 0.0, 10.0)
        check_number("the finest side of the hash grid", self.sides[-1], 1, 1 << 20)

    @property
    def sides(self) -> tuple[int, ...]:
        """Vertices along a side of each level.

        >>> HashGridSettings(levels=4, base=16, growth=1.5).sides
        (16, 24, 36, 54)
        """
        return tuple(math.ceil(round(self.base * self.growth**level, 6)) for level in range(self.levels))

    def rows(self, side: int) -> int:
        """Rows in the table of a level: side^3, or the table's length where that is less."""
        return min(side**3, 1 << self.log2_table)


def vertex_rows(vertices: Tensor, side: int, rows: int) -> Tensor:
    """Where a vertex is in its level's table.

    Args:
        vertices: int64 (..., 3), as x, y, z in [0, side).
        side: vertices along a side.
        rows: length of the table: side^3 for a dense level, or else a power of two.

    Returns:
        int64 (...) in [0, rows).

    >>> vertex_rows(torch.tensor([[1, 2, 3]]), 4, 64).tolist(), vertex_rows(torch.tensor([[1, 2, 3]]), 40, 64).tolist()
    ([57], [28])
    """
    x, y, z = vertices.unbind(-1)
    if rows == side**3:
        return x + side * (y + side * z)
    return (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) & (rows - 1)  # the low bits are those of 32-bit products


class HashGrid(nn.Module):
    """Features from a hash grid, which all objects share.

    Args:
        settings: the sizes.
    """

    corners: Tensor

    def __init__(self, settings: HashGridSettings) -> None:
        super().__init__()
        self.sides, self.channels = settings.sides, settings.levels * settings.features
        tables = [torch.empty(settings.rows(side), settings.features) for side in self.sides]
        self.tables = nn.ParameterList(
            [nn.Parameter(nn.init.uniform_(table, -settings.start, settings.start)) for table in tables]
        )
        self.register_buffer("corners", torch.tensor(CORNERS), persistent=False)

    def at(self, points: Tensor) -> Tensor:
        """Features (P, N, C) at points (P, N, 3) in [-1, 1]; (1, N, C) at points that all objects share.

        A point outside of the box has the features of the nearest one inside.
        """
        with full_precision(points):
            kind = torch.promote_types(self.tables[0].dtype, torch.float32)
            inside = points.reshape(-1, 3).to(kind).clamp(-1, 1)
            made = [self._level(inside, table, side) for table, side in zip(self.tables, self.sides, strict=True)]
            return torch.cat(made, -1).view(*points.shape[:2], self.channels)

    def on_axes(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Features (1, X Y Z, C) at the points of a grid."""
        return self.at(points_of_axes(x, y, z))

    def _level(self, points: Tensor, table: Tensor, side: int) -> Tensor:
        """Features (M, F) of one level at points (M, 3)."""
        position = (points + 1) * ((side - 1) / 2)
        low = position.detach().floor().clamp(0, side - 2)
        part = (position - low)[:, None]
        x, y, z = torch.where(self.corners.bool(), part, 1 - part).unbind(-1)  # each (M, 8)
        rows = vertex_rows(low.long()[:, None] + self.corners, side, len(table))
        found = at_least_float32(table).index_select(0, rows.flatten()).view(*rows.shape, -1)
        return (found * (x * y * z)[..., None]).sum(1)
