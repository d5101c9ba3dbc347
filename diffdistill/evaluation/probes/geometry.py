"""Alignment and uniformity of features on the unit sphere (Wang and Isola, arXiv 2005.10242).

Both are lower where features are better: alignment is small where two views of an image have near features, and
uniformity is small where features of all images are spread evenly.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between the unit features of two views of each image, both (N, D); from 0 to 4.

    >>> alignment(torch.eye(2), 3 * torch.eye(2))
    0.0
    """
    return (normalize(first.double(), dim=1) - normalize(second.double(), dim=1)).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 |u - v|^2) over all pairs of different rows (N, D), as unit features; at most 0.

    Raises:
        ValueError: there are fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError("uniformity needs two features or more")
    distances = torch.pdist(normalize(features.double(), dim=1))
    return distances.square().mul(-2).exp().mean().log().item()
