"""The Frechet distance between two sets of feature vectors, as pure functions in float64.

Notable:
- no matrix square root is formed: the distance is a sum of singular values, or of square roots of the eigenvalues of a
  symmetric matrix, whichever is the smaller problem;
- for two streamed sets, rows take the place of a covariance where n <= d on either side, which is exact;
- the extrapolation to infinitely many images removes the bias that comes from the number of generated images.

It is not FID unless the features are those of FID's Inception network.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill.evaluation.distances.kernel import check_rows
from diffdistill.evaluation.features.feature_set import require_same_protocol
from diffdistill.evaluation.features.statistics import FeatureStatistics

_BLOCK = 256  # columns a step in products with a triangular matrix


class FrechetTerms(NamedTuple):
    """A squared Frechet distance, |mean_x - mean_y|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2)), in its two parts."""

    mean_term: float
    trace_term: float

    @property
    def total(self) -> float:
        """The squared distance, the sum of both terms."""
        return self.mean_term + self.trace_term


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians fitted to two sets.

    |mean_x - mean_y|^2 + tr Cx + tr Cy - 2 tr (Cx Cy)^(1/2)   (Dowson and Landau 1982), covariances
    over n - 1. With F^T F = Cx and G^T G = Cy, the last trace is the sum of the singular values of F G^T. F is the
    centred rows over sqrt(n - 1), or its R factor where n > d. This holds for every n, also for n < d, and loses no
    digits to a squared condition number.

    The value is biased upwards, strongly where n is not far above d: compare it only at equal n. It is FID only on the
    features of FID's Inception network.

    Args:
        x: Tensor of shape (m, d), m >= 2.
        y: Tensor of shape (n, d), n >= 2.

    Raises:
        ValueError: wrong shapes, too few rows, or values that are not finite.

    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> round(frechet_distance(x, x + 3), 6)
    9.0
    """
    check_rows(x, y, minimum=2)
    factor_x, mean_x = _covariance_factor(x)
    factor_y, mean_y = _covariance_factor(y)
    return FrechetTerms(_mean_term(mean_x, mean_y), _trace_term_of_factors(factor_x, factor_y)).total


def frechet_distance_from_moments(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """The same distance from means (d,) and covariances (d, d), for statistics that were streamed.

    With Cx = L L^T the eigenvalues of Cx Cy are those of the symmetric L^T Cy L, so `eigvalsh` is enough. A singular Cx
    has no Cholesky factor, and its eigenvectors take the factor's place, which takes five times as long. Where n < d,
    prefer `frechet_distance`: here the rounding noise in zero eigenvalues goes through a square root.

    Raises:
        ValueError: shapes that do not belong together, or values that are not finite.
    """
    d = mean_x.numel()
    moments = {"mean_x": mean_x, "cov_x": cov_x, "mean_y": mean_y, "cov_y": cov_y}
    for name, value in moments.items():
        expected = (d,) if name.startswith("mean") else (d, d)
        if tuple(value.shape) != expected:
            raise ValueError(f"{name} should have shape {expected}, got {tuple(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
    mean_x, cov_x, mean_y, cov_y = (value.double() for value in moments.values())
    return FrechetTerms(_mean_term(mean_x, mean_y), _trace_term_of_covariances(cov_x, cov_y.clone())).total


def frechet_terms(x: FeatureStatistics, y: FeatureStatistics) -> FrechetTerms:
    """The squared Frechet distance of two streamed sets, as mean term and trace term, computed on the CPU.

    Where n <= d on a side, its rows take the place of its covariance (singular values, or eigenvalues of an n x n
    matrix). That is faster, and exact where a covariance would lose half the digits.

    Raises:
        UserError: the sets were measured under different protocols.
        ValueError: feature sizes differ, or a set has fewer than 2 rows.

    >>> x, y = FeatureStatistics(1), FeatureStatistics(1)
    >>> x.update(torch.tensor([[-1.0], [1.0]]))
    >>> y.update(torch.tensor([[1.0], [5.0]]))
    >>> frechet_terms(x, y)
    FrechetTerms(mean_term=9.0, trace_term=2.0)
    """
    require_same_protocol(x, y)
    if x.d != y.d:
        raise ValueError(f"x and y should have one feature size, got {x.d} and {y.d}")
    if x.n < y.n:  # the smaller set is the likelier to have rows in place of a covariance, or no Cholesky factor
        x, y = y, x
    mean_term = _mean_term(x.mean, y.mean)
    factor_x, factor_y = x.factor(), y.factor()
    if factor_x is not None and factor_y is not None:
        return FrechetTerms(mean_term, _trace_term_of_factors(factor_x.cpu(), factor_y.cpu()))
    if factor_y is not None:
        cov_x, factor_y = x.covariance.cpu(), factor_y.cpu()
        cross = _sum_of_roots(factor_y @ cov_x @ factor_y.T)
        return FrechetTerms(mean_term, max(0.0, float(cov_x.trace() + factor_y.square().sum()) - 2 * cross))
    return FrechetTerms(mean_term, _trace_term_of_covariances(x.covariance.cpu(), y.covariance.cpu()))


def frechet_distance_of(x: FeatureStatistics, y: FeatureStatistics) -> float:
    """The squared Frechet distance of two streamed sets: the sum of both `frechet_terms`."""
    return frechet_terms(x, y).total


class Extrapolation(NamedTuple):
    """A distance at infinitely many images.

    Attributes:
        distance: the value of the line at 1 / n = 0.
        standard_error: of that value, from the scatter about the line. The sizes share rows, so it is a lower bound.
        sizes: numbers of images.
        distances: the distance at each of these.
    """

    distance: float
    standard_error: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance_infinity(
    x: Tensor, reference: FeatureStatistics, smallest: int | None = None, points: int = 15, seed: int = 0
) -> Extrapolation:
    """The Frechet distance without the bias of a finite number of generated images (Chong and Forsyth 2020).

    A line in 1 / size is fitted to the distances at `points` sizes, evenly spaced from `smallest` to m. Rows are drawn
    again for each size, without replacement. The bias is linear in 1 / size only where sizes are well above d; below d
    the result estimates nothing. The bias that comes from the reference's own n stays.

    Args:
        x: features of generated images, Tensor of shape (m, d).
        reference: statistics of real images.
        smallest: the smallest size; 5000 by default, or a tenth of the rows where that is less.
        points: number of sizes, at least 3.
        seed: of the generator that draws rows; torch's global generator is not used.

    Raises:
        ValueError: a feature size other than the reference's, fewer than 3 points or rows, a `smallest` outside 2 .. m
            - 1, or values that are not finite.
    """
    everything = FeatureStatistics(reference.d, reference.protocol)
    everything.update(x)
    m = len(x)
    smallest = max(2, min(5000, m // 10)) if smallest is None else smallest
    if points < 3 or not 2 <= smallest < m:
        raise ValueError(f"needs points >= 3 and smallest from 2 to {m - 1}, got {points} and {smallest}")
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(smallest, m, points, dtype=torch.float64).long().tolist()
    distances = [frechet_distance_of(everything, reference)]
    for size in reversed(sizes[:-1]):
        subset = FeatureStatistics(reference.d, reference.protocol)
        subset.update(x[torch.randperm(m, generator=generator)[:size].to(x.device)])
        distances.insert(0, frechet_distance_of(subset, reference))
    inverse, values = 1 / torch.tensor(sizes, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    centred = inverse - inverse.mean()
    slope = centred @ values / centred.square().sum()
    intercept = values.mean() - slope * inverse.mean()
    residual = (values - intercept - slope * inverse).square().sum() / (points - 2)
    error = (residual * (1 / points + inverse.mean() ** 2 / centred.square().sum())).sqrt()
    return Extrapolation(float(intercept), float(error), tuple(sizes), tuple(distances))


def _mean_term(mean_x: Tensor, mean_y: Tensor) -> float:
    return float((mean_x.cpu() - mean_y.cpu()).square().sum())


def _trace_term_of_factors(factor_x: Tensor, factor_y: Tensor) -> float:
    """tr Cx + tr Cy - 2 tr (Cx Cy)^(1/2) with F^T F = Cx and G^T G = Cy."""
    cross = torch.linalg.svdvals(factor_x @ factor_y.T).sum()
    return max(0.0, float(factor_x.square().sum() + factor_y.square().sum() - 2 * cross))


def _trace_term_of_covariances(cov_x: Tensor, cov_y: Tensor) -> float:
    """The same from covariances. It needs the memory of one more matrix, and overwrites cov_y."""
    traces = float(cov_x.trace() + cov_y.trace())
    # A feature that never varies has a zero row. It is left out, so that Cholesky works on the others.
    alive = (cov_x.diagonal() > 0) & (cov_y.diagonal() > 0)
    if not bool(alive.all()):
        cov_x, cov_y = cov_x[alive][:, alive], cov_y[alive][:, alive]
    lower, info = torch.linalg.cholesky_ex(cov_x)
    if int(info) != 0:
        eigenvalues, eigenvectors = torch.linalg.eigh(cov_x)
        lower = torch.linalg.qr((eigenvectors * eigenvalues.clamp_min(0).sqrt()).T, mode="r").R.T
    del cov_x
    # L^T Cy L in place, and only its lower triangle, which is what eigvalsh reads: d^3 operations, where products that
    # do not use the zeros in L take 4 d^3.
    d = len(lower)
    blocks = [slice(i, min(i + _BLOCK, d)) for i in range(0, d, _BLOCK)]
    for j in blocks:
        cov_y[j.start :, j] = cov_y[j.start :, j.start :] @ lower[j.start :, j]
    for i in blocks:
        cov_y[i, : i.stop] = lower[i.start :, i].T @ cov_y[i.start :, : i.stop]
    del lower
    return max(0.0, traces - 2 * _sum_of_roots(cov_y))


def _sum_of_roots(symmetric: Tensor) -> float:
    return float(torch.linalg.eigvalsh(symmetric).clamp_min(0).sqrt().sum())


def _covariance_factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """F of shape (min(n, d), d) with F^T F the covariance of x, and the mean of shape (d,)."""
    x = x.detach().double()
    mean = x.mean(0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    if len(x) > x.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return factor, mean
