"""Inception score (Salimans et al. 2016, arXiv 1606.03498, section 4), from logits.

Notable:
- it works in float64 and by log-softmax throughout, so a class of probability zero contributes zero, not NaN;
- with more than one split the order of the images matters: a split that holds a single class scores 1.

It is the Inception score only for the class logits of FID's Inception network, and it does not look at real images.
"""

import math

import torch
from torch import Tensor


def inception_score(logits: Tensor, splits: int = 10, shuffle_seed: int | None = None) -> tuple[float, float]:
    """exp of the mean over images of KL(p(y|x) | p(y)), where p(y) is the mean of p(y|x) over the images of a split.

    Splits are runs of consecutive rows, i N / splits to (i + 1) N / splits, each rounded down. With one split the value
    does not depend on the order of the rows. With more it does, strongly where images come sorted by class or prompt.
    The value grows with the number of images in a split.

    Args:
        logits: Tensor of shape (N, classes), before softmax.
        splits: number of splits, from 1 to N.
        shuffle_seed: of a generator that permutes the rows first; None leaves them in order. torch-fidelity permutes
            by numpy's RandomState(2020).permutation(N); to get its value, pass rows in that order.

    Returns:
        Mean and standard deviation of the scores (over splits, not splits - 1); each score is from 1 to `classes`.

    Raises:
        ValueError: a wrong shape or dtype, a number of splits outside 1 .. N, or values that are not finite.

    >>> certain = 100 * torch.eye(4)  # one image of each class
    >>> [round(score, 6) for score in inception_score(certain, splits=1)]
    [4.0, 0.0]
    >>> inception_score(certain, splits=4)
    (1.0, 0.0)
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits should have shape (N, classes), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"logits should be floating point, got {logits.dtype}")
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits should be from 1 to the {n} rows there are, got {splits}")
    if not bool(logits.isfinite().all()):
        raise ValueError(f"logits hold values that are not finite, in {int((~logits.isfinite()).any(1).sum())} rows")
    if shuffle_seed is not None:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(shuffle_seed))
        logits = logits[order.to(logits.device)]
    scores = []
    for i in range(splits):
        log_p = logits[i * n // splits : (i + 1) * n // splits].detach().double().log_softmax(1)
        log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
        divergence = (log_p.exp() * (log_p - log_marginal)).sum(1).mean()
        scores.append(divergence.exp())
    drawn = torch.stack(scores)
    return float(drawn.mean()), float(drawn.std(correction=0))
