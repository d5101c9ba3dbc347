"""The distance of two samples in inner features of a network, as a perceptual loss has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over maps of the mean over batch and positions of |u - v|^2, where u and v are a and b at unit length.

    It has the form of LPIPS (arXiv 1801.03924, eq. 1) with every weight 1. The teacher's own features take the place
    of an image classifier's, as in the self-perceptual loss (arXiv 2401.00110).

    Args:
        a: maps of one sample, each of shape (B, C, h, w); every map has a size of its own.
        b: maps of the other sample, of the same shapes.

    Returns:
        Tensor of shape (): 0 where all features point the same way, and at most 4 for each map.

    Raises:
        ValueError: there are no maps, or their numbers differ.

    >>> one, other = torch.tensor([[[[2.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[5.0]]]])
    >>> feature_distance([one], [other]).item()
    2.0
    """
    if not a or len(a) != len(b):
        raise ValueError(f"there are {len(a)} maps and {len(b)}; need as many, and at least one")
    pairs = [(_unit(x) - _unit(y)).square().sum(1).mean() for x, y in zip(a, b, strict=True)]
    return torch.stack(pairs).sum()


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-12).sqrt()
