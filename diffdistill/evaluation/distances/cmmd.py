"""CMMD: maximum mean discrepancy of embeddings under a Gaussian kernel (Jayasumana et al. 2024, arXiv 2401.09603).

Notable:
- the published number is the biased V-statistic, which keeps the diagonal; the unbiased one is an option;
- with sigma = 10 on unit vectors every kernel value lies in [.98, 1], so k - 1 is summed, by expm1: the ones cancel
  before they are rounded, whereas a float32 kernel keeps two to four digits of the result;
- it works in float64 tiles, so memory does not grow with n^2 (30,000 images would need three matrices of 7.2 GB).

It is CMMD only where the embeddings are those of CLIP ViT-L/14 at 336 pixels.
"""

from torch import Tensor

from diffdistill.evaluation.distances.kernel import check_rows, kernel_sums


def cmmd(x: Tensor, y: Tensor, unbiased: bool = False, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """Squared maximum mean discrepancy with k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), times `scale`.

    Rows are first normalised to unit length, so |a - b|^2 = 2 - 2 a.b.

    Args:
        x: embeddings of generated images, Tensor of shape (m, d), m >= 2.
        y: embeddings of real images, Tensor of shape (n, d), n >= 2.
        unbiased: leave the diagonals out (Gretton et al. 2012, eq. 3). The value can then be slightly negative. By
            default they stay in (eq. 5), as published, and the value is biased upwards by about scale (1 / m + 1 / n)
            times the mean of 1 - k. Compare biased values only at equal m and n.
        sigma: width of the kernel.
        scale: a factor on the value; the paper's 1000 makes numbers readable.

    Raises:
        ValueError: wrong shapes, too few rows, a row of length zero, a sigma that is not positive, or values that are
            not finite.

    >>> import torch
    >>> x, y = torch.eye(2), -torch.eye(2)
    >>> round(cmmd(x, y), 6), round(cmmd(x, x), 6)
    (19.801327, 0.0)
    """
    check_rows(x, y, minimum=2)
    if not sigma > 0:
        raise ValueError(f"sigma should be positive, got {sigma}")
    x, y = _unit(x, "x"), _unit(y, "y")

    def kernel_less_one(inner: Tensor) -> Tensor:
        return inner.sub_(1).div_(sigma**2).expm1_()

    def mean_within(rows: Tensor) -> float:
        # k - 1 is zero on the diagonal, so both statistics have the same sum.
        n = len(rows)
        return float(kernel_sums(rows, None, kernel_less_one)[0].sum()) / (n * (n - 1 if unbiased else n))

    between = float(kernel_sums(x, y, kernel_less_one)[0].sum()) / (len(x) * len(y))
    value = mean_within(x) + mean_within(y) - 2 * between
    return scale * (value if unbiased else max(0.0, value))


def _unit(rows: Tensor, name: str) -> Tensor:
    rows = rows.detach().double()
    lengths = rows.norm(dim=1, keepdim=True)
    if bool((lengths == 0).any()):
        first = int((lengths.flatten() == 0).nonzero()[0])
        raise ValueError(f"{name} has a row of length zero, the first is {first}; it cannot be normalised")
    return rows / lengths
