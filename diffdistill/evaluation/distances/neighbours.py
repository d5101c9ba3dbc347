"""Numbers from nearest neighbours in feature space: precision, recall, density, coverage, and nearest images.

Notable:
- all four numbers come from one pass over the distances between the sets, and one within each set;
- distances are computed in float64 in tiles, so memory does not grow with n^2;
- squared distances are accurate to 1e-12 (|a|^2 + |b|^2) after centring. Balls are closed and widened by as much, so
  that a copy of an image, or a tie, is inside however the tiles round;
- the distances that `nearest` returns are computed again from the differences, so an exact copy is at exactly zero.

A generator that has learned the training set by heart has perfect precision, so look at `nearest` as well.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill.evaluation.distances.kernel import check_rows

_TILE = 2048
_SLACK = 1e-12


class Neighbourhoods(NamedTuple):
    """The four numbers. Each is in [0, 1], except density, which has no upper bound.

    Density is 1 on average where both distributions are equal.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    generated: Tensor, reference: Tensor, k_precision: int = 3, k_density: int = 5, tile: int = _TILE
) -> Neighbourhoods:
    """Precision, recall, density and coverage.

    The first two are those of Kynkaanniemi et al. 2019 (arXiv 1904.06991, eq. 1 and 2). The others are those of Naeem
    et al. 2020 (arXiv 2002.09797), which single outliers in either set move less.

    The ball of a row is closed, and its radius is the distance to the row's k-th neighbour in its own set. Then

        precision   share of generated rows in the ball of any reference row
        recall      share of reference rows in the ball of any generated row
        density     mean over generated rows of (number of reference balls around it) / k
        coverage    share of reference rows whose ball holds any generated row

    All four depend on both numbers of rows: compare only at equal sizes (the papers take 50,000 and 10,000).

    Args:
        generated: Tensor of shape (m, d).
        reference: Tensor of shape (n, d).
        k_precision: neighbours for precision and recall; both sets need more rows than this.
        k_density: neighbours for density and coverage; the reference needs more rows than this.
        tile: side of the square tiles of distances.

    Raises:
        ValueError: wrong shapes, too few rows for k, or values that are not finite.

    >>> line = torch.arange(4.0)[:, None]
    >>> prdc(line, line + 10, k_precision=1, k_density=1)
    Neighbourhoods(precision=0.0, recall=0.0, density=0.0, coverage=0.0)
    >>> prdc(line[1:3] + 0.1, line, k_precision=1, k_density=1)
    Neighbourhoods(precision=1.0, recall=0.75, density=2.0, coverage=0.75)
    """
    if k_precision < 1 or k_density < 1:
        raise ValueError(f"k should be at least 1, got {k_precision} and {k_density}")
    check_rows(generated, reference, minimum=k_precision + 1)
    if len(reference) <= k_density:
        raise ValueError(f"reference should have more rows than k_density = {k_density}, got {len(reference)}")
    centre = reference.detach().double().mean(0)
    radii = _squared_radii(reference, centre, max(k_precision, k_density), tile)
    radius_precision, radius_density = radii[:, k_precision - 1], radii[:, k_density - 1]
    radius_recall = _squared_radii(generated, centre, k_precision, tile)[:, k_precision - 1]

    device = reference.device
    precise = torch.zeros(len(generated), dtype=torch.bool, device=device)
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=device)
    covered = torch.zeros_like(recalled)
    balls = 0
    for rows, columns, squared in _tiles(generated, reference, centre, tile, _SLACK):
        precise[rows] |= (squared <= radius_precision[columns]).any(1)
        recalled[columns] |= (squared <= radius_recall[rows, None]).any(0)
        inside = squared <= radius_density[columns]
        covered[columns] |= inside.any(0)
        balls += int(inside.sum())
    density = balls / (k_density * len(generated))
    return Neighbourhoods(_share(precise), _share(recalled), density, _share(covered))


def nearest(x: Tensor, reference: Tensor, k: int = 1, tile: int = _TILE) -> tuple[Tensor, Tensor]:
    """The k nearest rows of the reference for each row of x, which show whether images were memorised.

    Args:
        x: Tensor of shape (m, d).
        reference: Tensor of shape (n, d).
        k: number of neighbours, from 1 to n.
        tile: side of the square tiles of distances.

    Returns:
        Indices into the reference, int64, and Euclidean distances, float64, both of shape (m, k), nearest first. Of
        rows at the same distance it is not defined which ones are returned, where not all are.

    Raises:
        ValueError: wrong shapes, a k outside 1 .. n, or values that are not finite.

    >>> indices, distances = nearest(torch.tensor([[2.2]]), torch.tensor([[0.0], [2.0], [3.0]]), k=2)
    >>> indices.tolist(), [round(d, 3) for d in distances[0].tolist()]
    ([[1, 2]], [0.2, 0.8])
    """
    check_rows(x, reference, minimum=1)
    if not 1 <= k <= len(reference):
        raise ValueError(f"k should be from 1 to {len(reference)}, got {k}")
    centre = reference.detach().double().mean(0)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    best = torch.full((len(x), k), float("inf"), dtype=torch.float64, device=x.device)
    for rows, columns, squared in _tiles(x, reference, centre, tile):
        here = torch.arange(columns.start, columns.stop, device=x.device).expand(len(squared), -1)
        values, places = torch.cat([best[rows], squared], 1).topk(k, largest=False)
        best[rows], indices[rows] = values, torch.cat([indices[rows], here], 1).gather(1, places)
    distances = torch.empty_like(best)
    for row, candidates in enumerate(indices):
        exact = (reference[candidates].detach().double() - x[row].detach().double()).norm(dim=1)
        distances[row], order = exact.sort(stable=True)
        indices[row] = candidates[order]
    return indices, distances


def _tiles(
    x: Tensor, y: Tensor, centre: Tensor, tile: int, slack: float = 0.0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and squared distances of each tile; `slack` times the squared lengths is taken off."""
    for i in range(0, len(x), tile):
        left = x[i : i + tile].detach().double() - centre
        for j in range(0, len(y), tile):
            right = y[j : j + tile].detach().double() - centre
            squared = left @ right.T
            squared.mul_(-2).add_(left.square().sum(1, keepdim=True), alpha=1 - slack)
            squared.add_(right.square().sum(1), alpha=1 - slack)
            yield slice(i, i + len(left)), slice(j, j + len(right)), squared


def _squared_radii(x: Tensor, centre: Tensor, k: int, tile: int) -> Tensor:
    """Squared distances of each row to its first k neighbours in its own set, without itself: shape (n, k)."""
    best = torch.full((len(x), k), float("inf"), dtype=torch.float64, device=x.device)
    for rows, columns, squared in _tiles(x, x, centre, tile):
        if rows == columns:
            squared.fill_diagonal_(float("inf"))
        best[rows] = torch.cat([best[rows], squared], 1).topk(k, largest=False).values
    return best.sort(1).values.clamp_min(0)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
