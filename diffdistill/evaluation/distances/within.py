"""How far generated images are from others of the same caption, which sees quality and variety at once."""

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from diffdistill.evaluation.distances.groups import rows_of_groups


def distance_within(features: Tensor, others: Tensor, captions: Sequence[Hashable]) -> float:
    """The kernel distance of images of a caption to others of it, averaged over captions.

    It is the mean over captions of the unbiased squared maximum mean discrepancy with the cubic kernel (x y / d + 1)^3,
    as `kernel_distance` has it over all images. A generator that always draws the same image of a caption is far from
    one that varies, which a distance over all images may not see.

    Args:
        features, others: Tensors of shape (n, d); row i of both is of caption i.
        captions: n captions, each two times or more.

    Raises:
        ValueError: other shapes, values that are not finite, or a caption with one image.

    >>> x = torch.tensor([[1.0], [-1.0], [0.0], [2.0]])
    >>> distance_within(x, x, ["a", "a", "b", "b"]) < 0
    True
    """
    if features.ndim != 2 or features.shape != others.shape or len(captions) != len(features):
        raise ValueError(
            f"features and others should have one shape (n, d) with n captions, got {tuple(features.shape)}, "
            f"{tuple(others.shape)} and {len(captions)} captions"
        )
    if min(Counter(captions).values(), default=0) < 2:
        raise ValueError("a caption has one image; two are needed")
    if not bool(others.isfinite().all()):
        raise ValueError("features hold values that are not finite")
    distances = []
    for rows in rows_of_groups(features, captions):
        x, y = features[rows].double(), others[rows].double()
        distances.append(_between(x) + _between(y) - 2 * _kernel(x, y).mean())
    return float(torch.stack(distances).mean())


def spread_within(features: Tensor, captions: Sequence[Hashable]) -> float:
    """How far two images of a caption are from each other, in the kernel's own measure, averaged over captions.

    It is the mean of k(x, x) - k(x, y) over pairs of a caption, half of their squared distance in the kernel's space.
    On average `distance_within` is as much for a generator that always draws one and the same of a caption's images.

    Args:
        features: Tensor of shape (n, d); row i is of caption i.
        captions: n captions.

    Raises:
        ValueError: as `rows_of_groups`.

    >>> spread_within(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), ["a", "a", "b", "b"])
    0.0
    """
    found = []
    for rows in rows_of_groups(features, captions):
        x = features[rows].double()
        found.append(_kernel(x, x).diagonal().mean() - _between(x))
    return float(torch.stack(found).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return ((x @ y.T) / x.shape[1] + 1) ** 3


def _between(x: Tensor) -> Tensor:
    """The mean kernel of two different rows."""
    k, m = _kernel(x, x), len(x)
    return (k.sum() - k.trace()) / (m * (m - 1))
