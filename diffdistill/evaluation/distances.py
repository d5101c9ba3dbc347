"""Distances between two sets of feature vectors, as pure functions in float64.

Notable:
- the kernel distance uses every pair (no random subsets), in tiles, so memory does not grow with n^2;
- its standard error is the exact delete-one jackknife, which needs only row sums of the kernel;
- the Frechet distance never forms a matrix square root: it is a sum of singular values.

Neither is FID or KID unless the features are those of FID's Inception network.
"""

import torch
from torch import Tensor

_TILE = 2048  # a float64 tile of this side is 32 MiB


def kernel_distance(x: Tensor, y: Tensor, tile: int = _TILE) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with the kernel k(a, b) = (a.b / d + 1)^3.

    The U-statistic of Gretton et al. 2012, eq. 3, with the kernel of Binkowski et al. 2018 (KID), over all
    samples. Zero on average when both sets come from one distribution, at any n, so single values
    can be slightly negative.

    The standard error is the two-sample delete-one jackknife:
    var = (m-1)/m sum_i (D_-i - mean)^2 over x, plus the same over y. It takes the images of a set as
    independent draws. Where the two distributions coincide it errs on the large side (Efron and Stein 1981).

    Args:
        x: Tensor of shape (m, d), m >= 3.
        y: Tensor of shape (n, d), n >= 3.
        tile: side of the square tiles in which the kernel is computed.

    Returns:
        The distance and its standard error.

    Raises:
        ValueError: wrong shapes, too few rows, or values that are not finite.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> kd, standard_error = kernel_distance(x, x + 1)
    >>> round(kd, 6)
    21.666667
    """
    _check(x, y, minimum=3)
    m, n = len(x), len(y)
    rows_xx, _ = _kernel_sums(x, None, tile)
    rows_yy, _ = _kernel_sums(y, None, tile)
    rows_xy, rows_yx = _kernel_sums(x, y, tile)
    sum_xx, sum_yy, sum_xy = rows_xx.sum(), rows_yy.sum(), rows_xy.sum()
    mean_xx, mean_yy, mean_xy = sum_xx / (m * (m - 1)), sum_yy / (n * (n - 1)), sum_xy / (m * n)

    # The statistic with one row left out; each row of a symmetric kernel matrix is also a column.
    without_x = (sum_xx - 2 * rows_xx) / ((m - 1) * (m - 2)) - 2 * (sum_xy - rows_xy) / ((m - 1) * n)
    without_y = (sum_yy - 2 * rows_yy) / ((n - 1) * (n - 2)) - 2 * (sum_xy - rows_yx) / (m * (n - 1))
    variance = without_x.var(correction=0) * (m - 1) + without_y.var(correction=0) * (n - 1)
    return float(mean_xx + mean_yy - 2 * mean_xy), float(variance.sqrt())


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance between Gaussians fitted to two sets.

    |mean_x - mean_y|^2 + tr Cx + tr Cy - 2 tr (Cx Cy)^(1/2)   (Dowson and Landau 1982), covariances
    with n - 1. With F^T F = Cx and G^T G = Cy the last trace is the sum of the singular values of F G^T.
    F is the centred rows over sqrt(n - 1), or its R factor where n > d. That is right for every n, also
    n < d, and loses no digits to a squared condition number.

    The value is biased upwards, strongly where n is not far above d: compare only at equal n.

    Args:
        x: Tensor of shape (m, d), m >= 2.
        y: Tensor of shape (n, d), n >= 2.

    Raises:
        ValueError: wrong shapes, too few rows, or values that are not finite.

    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> round(frechet_distance(x, x + 3), 6)
    9.0
    """
    _check(x, y, minimum=2)
    factor_x, mean_x = _covariance_factor(x)
    factor_y, mean_y = _covariance_factor(y)
    cross = torch.linalg.svdvals(factor_x @ factor_y.T).sum()
    traces = factor_x.square().sum() + factor_y.square().sum()
    return max(0.0, float((mean_x - mean_y).square().sum() + traces - 2 * cross))


def frechet_distance_from_moments(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """The same distance from means (d,) and covariances (d, d), for statistics that were streamed.

    With Cx = L L^T the eigenvalues of Cx Cy are those of the symmetric L^T Cy L, so `eigvalsh` is enough.
    A singular Cx has no Cholesky factor; its eigenvectors serve instead. Where n < d prefer
    `frechet_distance`: here rounding noise in zero eigenvalues goes through a square root.

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
    root, info = torch.linalg.cholesky_ex(cov_x)
    if int(info) != 0:
        eigenvalues, eigenvectors = torch.linalg.eigh(cov_x)
        root = eigenvectors * eigenvalues.clamp_min(0).sqrt()
    cross = torch.linalg.eigvalsh(root.T @ cov_y @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross))


def _check(x: Tensor, y: Tensor, minimum: int) -> None:
    for name, value in (("x", x), ("y", y)):
        if value.ndim != 2:
            raise ValueError(f"{name} should have shape (n, d), got {tuple(value.shape)}")
        if len(value) < minimum:
            raise ValueError(f"{name} should have at least {minimum} rows, got {len(value)}")
        if not value.is_floating_point():
            raise ValueError(f"{name} should be floating point, got {value.dtype}")
        if not bool(value.isfinite().all()):
            rows = int((~value.isfinite()).any(1).sum())
            raise ValueError(f"{name} holds values that are not finite, in {rows} of {len(value)} rows")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y should have one feature size, got {x.shape[1]} and {y.shape[1]}")


def _kernel_sums(x: Tensor, y: Tensor | None, tile: int) -> tuple[Tensor, Tensor]:
    """Row and column sums of the kernel matrix of x and y; of x with itself, diagonal left out, without y."""
    other = x if y is None else y
    rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    columns = torch.zeros(len(other), dtype=torch.float64, device=x.device)
    for i in range(0, len(x), tile):
        left = x[i : i + tile].detach().double() / x.shape[1]
        for j in range(i if y is None else 0, len(other), tile):
            kernel = (left @ other[j : j + tile].detach().double().T).add_(1).pow_(3)
            if y is None and j == i:
                kernel.fill_diagonal_(0)
            rows[i : i + tile] += kernel.sum(1)
            if y is not None:
                columns[j : j + tile] += kernel.sum(0)
            elif j > i:  # the mirrored tile is not computed
                rows[j : j + tile] += kernel.sum(0)
    return rows, columns


def _covariance_factor(x: Tensor) -> tuple[Tensor, Tensor]:
    """F of shape (min(n, d), d) with F^T F the covariance of x, and the mean of shape (d,)."""
    x = x.detach().double()
    mean = x.mean(0)
    factor = (x - mean) / (len(x) - 1) ** 0.5
    if len(x) > x.shape[1]:
        factor = torch.linalg.qr(factor, mode="r").R
    return factor, mean
