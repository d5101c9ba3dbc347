"""The floor of a distance: what real images score, set aside, against the reference of the generated images."""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.evaluation.features.feature_rows import FeatureRows

SEED = 0


def set_aside(features: FeatureRows, n: int) -> tuple[FeatureRows, FeatureRows]:
    """n rows, drawn without replacement and always the same ones, and the other rows.

    Images lie in the order of their names, and neighbours are often alike, so the first n would be no fair sample.

    Raises:
        ValueError: fewer rows than n.
    """
    if not 0 <= n <= features.n:
        raise ValueError(f"n should be in [0, {features.n}], got {n}")
    order = torch.randperm(features.n, generator=torch.Generator().manual_seed(SEED))
    return chosen_rows(features, order[:n]), chosen_rows(features, order[n:])


def chosen_rows(features: FeatureRows, index: Tensor) -> FeatureRows:
    """The rows at `index`, in its order, under the same protocol and source."""
    chosen = features.empty()
    chosen.update(features.features[index])
    return chosen
