"""Kernel distances between views of a model's objects and true renders: of all views together, and of each prompt.

    views (P, V) of objects and true renders --features--> x_pv, y_pv
    h_pq = mean over views v, w of k(x_pv, x_qw) + k(y_pv, y_qw) - k(x_pv, y_qw) - k(y_pv, x_qw)

    render-KD          mean of h_pq over pairs of different prompts p, q
    KD of own views    the same of one prompt, over pairs of different cameras; of several prompts, the mean of theirs

with k(a, b) = (a.b / d + 1)^3, the kernel of `evaluation.distances.kernel` (Binkowski et al. 2018).

Notable:
- both are the unbiased estimate of Gretton et al. 2012, lemma 6, with prompts or cameras as its samples. The views of
  an object are not independent, and an object and its true renders belong together; so pairs within a prompt are left
  out of render-KD;
- both are exactly 0 if all views are the true ones, and compare between numbers of prompts. A value can be a little
  below 0;
- render-KD is a distance between sets of views: it shows faults that prompts share, such as blur or wrong colours.
  Faults of single prompts cancel out in it, and show in the KD of own views;
- the standard error of render-KD is the delete-one jackknife over prompts. Prompts of one thing share its faults, which
  makes it too small rather than too large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RenderKD(NamedTuple):
    """A kernel distance between sets of views.

    Attributes:
        kd: the distance.
        se: its standard error; None where there are fewer than 3 prompts.
    """

    kd: float
    se: float | None


def pair_terms(made: Tensor, true: Tensor) -> Tensor:
    """The terms h of all pairs of prompts, (P, P) float64, symmetric.

    Args:
        made: features of views (P, V, d).
        true: of true renders from the same cameras, of the same shape.

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    if made.shape != true.shape or made.dim() != 3:
        raise ValueError(f"features are {tuple(made.shape)} and {tuple(true.shape)}; both must be (P, V, d)")
    if not (made.isfinite().all() and true.isfinite().all()):
        raise ValueError("features hold values that are not finite")
    prompts, views, dim = made.shape
    both = torch.stack([made, true], 1).double()  # (P, 2, V, d)
    sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    terms = both.new_zeros(prompts, prompts)
    for p in range(prompts):
        inner = both[p].flatten(0, 1) @ both[p:].flatten(0, 2).T
        kernel = inner.div_(dim).add_(1).pow_(3).view(2, views, prompts - p, 2, views)
        terms[p, p:] = (kernel.sum((1, 4)) * sign[:, None]).sum((0, 2)) / views**2
    return terms + terms.triu(1).T


def distance_of(terms: Tensor) -> RenderKD:
    """Render-KD of the prompts whose terms these are, (P, P). Rows and columns of all terms give that of a part.

    Raises:
        ValueError: fewer than 2 prompts.
    """
    count = len(terms)
    if count < 2:
        raise ValueError(f"there are {count} prompts; a distance needs 2 or more")
    rows = terms.sum(1) - terms.diagonal()
    total = rows.sum()
    kd = float(total / (count * (count - 1)))
    if count < 3:
        return RenderKD(kd, None)
    without = (total - 2 * rows) / ((count - 1) * (count - 2))
    return RenderKD(kd, float((without.var(correction=0) * (count - 1)).sqrt()))


def own_distance(made: Tensor, true: Tensor) -> float:
    """The KD of own views of one prompt, from features (V, d)."""
    return distance_of(pair_terms(made[:, None], true[:, None])).kd
