"""Samples at equal distances in a box, and the box in which an object is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_MARGIN = 1.5  # samples of the coarse grid, kept free around what it found


@dataclass(frozen=True)
class Grid:
    """A lattice of points.

    Attributes:
        low: the first point (x, y, z).
        spacing: the distance of neighbours, equal along x, y and z.
        counts: how many points there are along x, y and z.
    """

    low: tuple[float, float, float]
    spacing: float
    counts: tuple[int, int, int]

    def __len__(self) -> int:
        """How many points there are."""
        return math.prod(self.counts)

    @property
    def high(self) -> np.ndarray:
        """The last point (3,), float64."""
        made: np.ndarray = np.array(self.low) + self.spacing * (np.array(self.counts) - 1)
        return made

    def points(self, start: int, stop: int) -> np.ndarray:
        """The points start .. stop in the order of `counts`, the last axis fastest: (stop - start, 3) float32.

        >>> Grid((0.0, 0.0, 0.0), 0.5, (2, 2, 3)).points(4, 6).tolist()
        [[0.0, 0.5, 0.5], [0.0, 0.5, 1.0]]
        """
        places = np.stack(np.unravel_index(np.arange(start, stop), self.counts), 1)
        return (np.array(self.low) + self.spacing * places).astype(np.float32)


def whole_box(radius: float, samples: int) -> Grid:
    """The grid over [-radius, radius]^3 with a number of samples along each side."""
    return Grid((-radius,) * 3, 2 * radius / (samples - 1), (samples,) * 3)


def grid_around(sdf: np.ndarray, coarse: Grid, radius: float, samples: int) -> Grid | None:
    """A grid over the box of an object that a coarse grid has found.

    Where a sample is nearer to the surface than one spacing, something thin may be; so it counts as found.

    Args:
        sdf: (x, y, z) signed distances on the coarse grid.
        coarse: the grid.
        radius: half the side of the field's box, which is not left.
        samples: how many there are along the longest side of the box.

    Returns:
        None where the coarse grid found nothing.
    """
    found = np.argwhere(sdf < coarse.spacing)
    if not len(found):
        return None
    margin = _MARGIN * coarse.spacing
    low = np.maximum(np.array(coarse.low) + coarse.spacing * found.min(0) - margin, -radius)
    high = np.minimum(np.array(coarse.low) + coarse.spacing * found.max(0) + margin, radius)
    spacing = float((high - low).max()) / (samples - 1)
    counts = np.ceil((high - low) / spacing - 1e-6).astype(int) + 1
    # a side that is no multiple of the spacing grows; where it would leave the field's box, it is moved into it
    low = np.minimum(low, radius - spacing * (counts - 1)).clip(-radius)
    (x, y, z), (i, j, k) = low.tolist(), counts.tolist()
    return Grid((x, y, z), spacing, (i, j, k))


def cuts_at(sdf: np.ndarray, grid: Grid, radius: float) -> bool:
    """Whether an object goes on beyond a grid, though the field's box does too."""
    inside = sdf < 0
    slack = 1e-3 * grid.spacing
    for axis in range(3):
        first, last = (inside.take(k, axis).any() for k in (0, -1))
        if first and grid.low[axis] > -radius + slack or last and grid.high[axis] < radius - slack:
            return True
    return False
