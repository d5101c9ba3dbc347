"""A few numbers in seconds, from features that are there already: distances and diversity."""

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from diffdistill.evaluation.distances.frechet import frechet_distance
from diffdistill.evaluation.distances.groups import rows_of_groups
from diffdistill.evaluation.distances.kernel import kernel_distance


def quick_numbers(features_generated: Tensor, features_reference: Tensor) -> dict[str, Any]:
    """Kernel and Frechet distance of generated images from real ones.

    Args:
        features_generated: Tensor of shape (n, d).
        features_reference: Tensor of shape (n_reference, d).

    Returns:
        `kd` (unbiased, comparable across n), `kd_se` (its standard error), `fd` (biased upwards: compare only
        at equal `n` and `n_reference`), `n` and `n_reference`.

    Raises:
        ValueError: wrong shapes, fewer than 3 rows, or values that are not finite.
    """
    kd, kd_se = kernel_distance(features_generated, features_reference)
    return {
        "kd": kd,
        "kd_se": kd_se,
        "fd": frechet_distance(features_generated, features_reference),
        "n": len(features_generated),
        "n_reference": len(features_reference),
    }


def diversity(features: Tensor, groups: Iterable[Hashable] | Tensor) -> float:
    """Mean Euclidean distance between the features of two images of one group, averaged over the groups.

    With prompts as groups this is the diversity within a caption. A generator that has collapsed to one image for each
    prompt scores 0.

    Args:
        features: Tensor of shape (n, d).
        groups: n labels, such as prompts, or a Tensor of n integers. Groups of one image are left out.

    Raises:
        ValueError: another number of labels than rows, no group of two, or values that are not finite.

    >>> diversity(torch.tensor([[0.0], [3.0], [5.0], [5.0]]), ["cat", "cat", "dog", "dog"])
    1.5
    """
    means = [torch.pdist(features[rows].double()).mean() for rows in rows_of_groups(features, groups)]
    return float(torch.stack(means).mean())
