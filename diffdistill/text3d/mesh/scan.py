"""Which pixels a triangle covers, and where in the triangle each lies: scan conversion for many triangles at once.

Notable:
- a pixel is covered where its centre, (x + 1/2, y + 1/2), is inside. Of two triangles that share an edge exactly one
  covers a centre on it: along a row a triangle covers [left, right), and both compute the shared edge from the same
  numbers in the same order;
- triangles are cut into rows first, so long thin ones cost no more than what they cover;
- all is vectorised, and comes in portions, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Covered(NamedTuple):
    """Pixels that triangles cover; a pixel is there once for each of them.

    Attributes:
        face: (K,) numbers of triangles.
        x: (K,) columns.
        y: (K,) rows.
        weights: (K, 3) barycentric coordinates of the pixel's centre in its triangle, at least 0, of sum 1.
    """

    face: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray


def covered(corners: np.ndarray, width: int, height: int, at_once: int = 1 << 20) -> Iterator[Covered]:
    """The pixels of an image that triangles cover, in portions.

    Args:
        corners: (M, 3, 2) x to the right and y downward, in pixels; (0, 0) is the upper left corner of the image.
        width: of the image. Parts of triangles outside are cut off.
        height: of the image.
        at_once: pixels in a portion, about.

    Returns:
        Portions in the order of the triangles.
    """
    corners = np.asarray(corners, np.float64)
    face, y, left, right = _rows(corners, width, height)
    ends = np.cumsum(right - left)
    start = 0
    while start < len(face):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + at_once, "right")))
        of_row, place = _ragged((right - left)[start:stop])
        of_row += start
        if len(of_row):
            x, rows, faces = left[of_row] + place, y[of_row], face[of_row]
            yield Covered(faces, x, rows, _weights(corners, faces, x + 0.5, rows + 0.5))
        start = stop


def _rows(corners: np.ndarray, width: int, height: int) -> tuple[np.ndarray, ...]:
    """Triangles cut into rows: face, row, first column, and one past the last column, each (R,)."""
    x, y = corners[..., 0], corners[..., 1]
    top = _first_centre(y.min(1), height)
    face, place = _ragged(_first_centre(y.max(1), height) - top)
    row = top[face] + place
    centre = row + 0.5
    left, right = np.full(len(face), np.inf), np.full(len(face), -np.inf)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        swapped = (y[:, a] > y[:, b]) | (y[:, a] == y[:, b]) & (x[:, a] > x[:, b])  # one direction for both neighbours
        x0, y0 = np.where(swapped, x[:, b], x[:, a])[face], np.where(swapped, y[:, b], y[:, a])[face]
        x1, y1 = np.where(swapped, x[:, a], x[:, b])[face], np.where(swapped, y[:, a], y[:, b])[face]
        crosses = (y0 <= centre) & (centre < y1)
        at = x0 + (centre - y0) * (x1 - x0) / np.where(crosses, y1 - y0, 1)
        left = np.minimum(left, np.where(crosses, at, np.inf))
        right = np.maximum(right, np.where(crosses, at, -np.inf))
    first, last = _first_centre(left, width), _first_centre(right, width)
    kept = last > first
    return face[kept], row[kept], first[kept], last[kept]


def _first_centre(values: np.ndarray, most: int) -> np.ndarray:
    """The number of the first pixel whose centre is at least at a value, in 0 .. most."""
    made: np.ndarray = np.ceil(values.clip(0, most) - 0.5).astype(np.int64)
    return made


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows of several lengths laid end to end: of which row each element is, and its place in the row.

    >>> [values.tolist() for values in _ragged(np.array([2, 0, 3]))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return row, place


def _weights(corners: np.ndarray, face: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b, c = (corners[:, k] for k in range(3))
    first, second = (b - a)[face], (c - a)[face]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    dx, dy = x - a[face, 0], y - a[face, 1]
    at_b = (dx * second[:, 1] - dy * second[:, 0]) / np.where(area == 0, 1, area)
    at_c = (dy * first[:, 0] - dx * first[:, 1]) / np.where(area == 0, 1, area)
    made = np.stack([1 - at_b - at_c, at_b, at_c], 1).clip(0, 1)  # a centre at an edge may be outside by rounding
    scaled: np.ndarray = made / made.sum(1, keepdims=True)
    return scaled
