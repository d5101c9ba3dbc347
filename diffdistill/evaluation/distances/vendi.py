"""The Vendi score: how many different images there are in effect (Friedman and Dieng 2022, arXiv 2210.02410)."""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from diffdistill.evaluation.distances.groups import rows_of_groups


def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / n, where K holds the cosines of all pairs.

    It is n for images whose features are orthogonal, and 1 for images that are all alike.

    Args:
        features: Tensor of shape (n, d).

    Raises:
        ValueError: another shape, no rows, values that are not finite, or a row of zeros.

    >>> vendi_score(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]))
    1.88...
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features should have shape (n, d) with n at least 1, got {tuple(features.shape)}")
    x = features.double()
    length = x.norm(dim=1, keepdim=True)
    if not bool(x.isfinite().all()) or not bool((length > 0).all()):
        raise ValueError("features hold values that are not finite, or a row of zeros, which has no direction")
    n, d = x.shape
    x = x / length
    kernel = x @ x.T if n <= d else x.T @ x  # the same eigenvalues, but for zeros
    values = torch.linalg.eigvalsh(kernel / n).clamp_min(0)
    values = values[values > 0]
    return float(torch.exp(-(values * values.log()).sum()))


def vendi_within(features: Tensor, groups: Iterable[Hashable] | Tensor) -> float:
    """The mean Vendi score of groups, such as the images of one caption.

    Args:
        features: Tensor of shape (n, d).
        groups: n labels. Groups of one image are left out.

    Raises:
        ValueError: as `vendi_score`; also another number of labels than rows, or no group of two.

    >>> vendi_within(torch.eye(4), ["cat", "cat", "dog", "dog"])
    2.0
    """
    scores = [vendi_score(features[rows]) for rows in rows_of_groups(features, groups)]
    return sum(scores) / len(scores)
