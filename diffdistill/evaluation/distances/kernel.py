"""The kernel distance between two sets of feature vectors, as pure functions in float64.

Notable:
- every pair is used (no random subsets), in tiles, so memory does not grow with n^2;
- its standard error is the exact delete-one jackknife, which needs only the kernel's row sums;
- the published mean over random subsets is here as well, with subsets drawn by a generator of its own or given.

It is KID only where the features are those of FID's Inception network.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_TILE = 2048  # a float64 tile of this side is 32 MiB


def kernel_sums(
    x: Tensor, y: Tensor | None, kernel: Callable[[Tensor], Tensor], tile: int = _TILE
) -> tuple[Tensor, Tensor]:
    """Row and column sums of the kernel matrix of x and y; without y, of x with itself, where the diagonal is left out.

    Args:
        x: Tensor of shape (m, d).
        y: Tensor of shape (n, d), or None.
        kernel: maps a float64 tile of inner products to the kernel's values; it may work in place.
        tile: side of the square tiles. Memory is that of a few tiles, whatever m and n.

    Returns:
        Tensors of shape (m,) and (n,), float64; without y the second one is zero.
    """
    other = x if y is None else y
    rows = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    columns = torch.zeros(len(other), dtype=torch.float64, device=x.device)
    for i in range(0, len(x), tile):
        left = x[i : i + tile].detach().double()
        for j in range(i if y is None else 0, len(other), tile):
            values = kernel(left @ other[j : j + tile].detach().double().T)
            if y is None and j == i:
                values.fill_diagonal_(0)
            rows[i : i + tile] += values.sum(1)
            if y is not None:
                columns[j : j + tile] += values.sum(0)
            elif j > i:  # the mirrored tile is not computed
                rows[j : j + tile] += values.sum(0)
    return rows, columns


def biased_kernel_distance(x: Tensor, y: Tensor, tile: int = _TILE) -> float:
    """The squared maximum mean discrepancy with all pairs, the V-statistic of Gretton et al. 2012, eq. 5.

    It is never negative, and zero where both sets are the same. Its bias is positive and falls with the number of rows,
    so it compares only with values of as many rows. The kernel is that of `kernel_distance`.

    Args:
        x: Tensor of shape (m, d).
        y: Tensor of shape (n, d).
        tile: side of the square tiles in which the kernel is computed.

    Raises:
        ValueError: wrong shapes, no rows, or values that are not finite.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> biased_kernel_distance(x, x)
    0.0
    """
    check_rows(x, y, minimum=1)
    kernel = _cubic(x.shape[1])
    xx, yy, xy = (kernel_sums(a, b, kernel, tile)[0].sum() / (len(a) * len(b)) for a, b in ((x, x), (y, y), (x, y)))
    return max(0.0, float(xx + yy - 2 * xy))


def kernel_distance(x: Tensor, y: Tensor, tile: int = _TILE) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with the kernel k(a, b) = (a.b / d + 1)^3.

    It is the U-statistic of Gretton et al. 2012, eq. 3, with the kernel of Binkowski et al. 2018 (KID), over all
    samples. Its mean is zero when both sets come from one distribution, at any n, so single values can be slightly
    negative.

    The standard error is the two-sample delete-one jackknife: var = (m-1)/m sum_i (D_-i - mean)^2 over x, plus the same
    over y. It takes the images of a set as independent. Where the two distributions are equal, it is too large rather
    than too small (Efron and Stein 1981).

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
    check_rows(x, y, minimum=3)
    m, n = len(x), len(y)
    kernel = _cubic(x.shape[1])
    rows_xx, _ = kernel_sums(x, None, kernel, tile)
    rows_yy, _ = kernel_sums(y, None, kernel, tile)
    rows_xy, rows_yx = kernel_sums(x, y, kernel, tile)
    sum_xx, sum_yy, sum_xy = rows_xx.sum(), rows_yy.sum(), rows_xy.sum()
    mean_xx, mean_yy, mean_xy = sum_xx / (m * (m - 1)), sum_yy / (n * (n - 1)), sum_xy / (m * n)

    # The statistic with one row left out; each row of a symmetric kernel matrix is also a column.
    without_x = (sum_xx - 2 * rows_xx) / ((m - 1) * (m - 2)) - 2 * (sum_xy - rows_xy) / ((m - 1) * n)
    without_y = (sum_yy - 2 * rows_yy) / ((n - 1) * (n - 2)) - 2 * (sum_xy - rows_yx) / (m * (n - 1))
    variance = without_x.var(correction=0) * (m - 1) + without_y.var(correction=0) * (n - 1)
    return float(mean_xx + mean_yy - 2 * mean_xy), float(variance.sqrt())


def kernel_distance_subsets(
    x: Tensor,
    y: Tensor,
    subset_size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
    indices: tuple[Tensor, Tensor] | None = None,
) -> tuple[float, float]:
    """The kernel distance as KID is published (Binkowski et al. 2018): mean and deviation over random subsets.

    Each subset takes `subset_size` rows of x and of y without replacement. The deviation (over subsets, not n - 1) is
    that of one subset's value and not the error of the mean; `kernel_distance` says more from the same rows.

    Args:
        x: Tensor of shape (m, d).
        y: Tensor of shape (n, d).
        subset_size: number of rows in a subset, from 2 to min(m, n).
        subsets: number of subsets, where `indices` are not given.
        seed: of the generator that draws subsets; torch's global generator is not used.
        indices: subsets drawn elsewhere: rows of x and rows of y, two integer Tensors of shape (subsets, subset_size).
            torch-fidelity draws with numpy's RandomState(rng_seed), for each subset x's rows and then y's.

    Returns:
        Mean and standard deviation of the unbiased estimates.

    Raises:
        ValueError: wrong shapes, subsets larger than a set, indices outside it, or values that are not finite.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> mean, deviation = kernel_distance_subsets(x, x + 1, subset_size=3, subsets=2)
    >>> round(mean, 6), deviation
    (21.666667, 0.0)
    """
    check_rows(x, y, minimum=2)
    if indices is None:
        if not 2 <= subset_size <= min(len(x), len(y)):
            raise ValueError(f"subset_size should be from 2 to {min(len(x), len(y))}, got {subset_size}")
        if subsets < 1:
            raise ValueError(f"subsets should be at least 1, got {subsets}")
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int) -> Tensor:
            return torch.randperm(n, generator=generator)[:subset_size]

        indices_x, indices_y = zip(*((draw(len(x)), draw(len(y))) for _ in range(subsets)), strict=True)
        indices = torch.stack(indices_x), torch.stack(indices_y)
    for name, rows, index in (("x", x, indices[0]), ("y", y, indices[1])):
        if index.ndim != 2 or index.shape != indices[0].shape or len(index) < 1 or index.shape[1] < 2:
            shapes = [tuple(i.shape) for i in indices]
            raise ValueError(f"indices should be two of one shape (subsets, subset_size >= 2), got {shapes}")
        if int(index.min()) < 0 or int(index.max()) >= len(rows):
            raise ValueError(f"indices into {name} should lie in 0..{len(rows) - 1}, got up to {int(index.max())}")
    kernel, values = _cubic(x.shape[1]), []
    for rows_x, rows_y in zip(*indices, strict=True):
        m = len(rows_x)
        chosen_x, chosen_y = x[rows_x.to(x.device)], y[rows_y.to(y.device)]
        within = sum(float(kernel_sums(rows, None, kernel)[0].sum()) for rows in (chosen_x, chosen_y))
        between = float(kernel_sums(chosen_x, chosen_y, kernel)[0].sum())
        values.append(within / (m * (m - 1)) - 2 * between / m**2)
    drawn = torch.tensor(values, dtype=torch.float64)
    return float(drawn.mean()), float(drawn.std(correction=0))


def check_rows(x: Tensor, y: Tensor, minimum: int) -> None:
    """Raise ValueError unless x and y are floating-point, finite, of shapes (m, d) and (n, d), with m, n >= minimum."""
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


def _cubic(d: int) -> Callable[[Tensor], Tensor]:
    return lambda inner: inner.div_(d).add_(1).pow_(3)
