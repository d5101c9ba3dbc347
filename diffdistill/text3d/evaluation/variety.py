"""How far objects are from one another: a number that shows a generator that makes the same of everything.

    distance of two objects = root of the mean squared difference of their 24 reference views, in levels of [0, 1]
    variety of objects      = mean distance over all pairs of them

Notable:
- of a generator that takes noise, it is measured among 4 objects of each prompt, which have different noise. A
  generator that has collapsed onto one object for each prompt scores 0;
- of a generator without noise, it is measured among the prompts of each thing, which differ by colour. The same number
  of the true renders stands beside it, which is what it should be;
- views are on white and from the same cameras, so form, pose and colour all count.
"""

from __future__ import annotations

import torch
from torch import Tensor

OBJECTS = 4  # of a prompt, for a generator that takes noise
NOISE_SEED = 11


def variety(views: Tensor) -> float | None:
    """The mean distance over all pairs of objects.

    Args:
        views: reference views (P, V, 3, S, S) in [0, 1], or uint8.

    Returns:
        A number in [0, 1]; None where there are fewer than 2 objects.

    >>> variety(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1, 1).expand(3, 2, 3, 4, 4))  # .5, .5 and 1
    0.666...
    """
    flat = views.flatten(1).double() / (255 if views.dtype == torch.uint8 else 1)
    if len(flat) < 2:
        return None
    return float(torch.pdist(flat).mean()) / flat.shape[1] ** 0.5


def noise_of_objects(width: int) -> Tensor:
    """Normal noise (4, Z) of the objects of a prompt, the same for all prompts."""
    return torch.randn(OBJECTS, width, generator=torch.Generator().manual_seed(NOISE_SEED))


def noise_width(model: object) -> int:
    """Z, the width of the noise that a model's generator takes; 0 if it takes none."""
    return int(getattr(getattr(model, "generator", None), "noise_dim", 0))
