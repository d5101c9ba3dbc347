"""From images to features, for what takes either: a protocol, an extractor, or features that the caller extracts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_set import FeatureSet
from diffdistill.evaluation.protocols import protocol_named

Images = Tensor | Sequence[Tensor]


class FeatureSpace(NamedTuple):
    """How images become features.

    Attributes:
        d: size of a feature.
        protocol: what a number made from the features has to carry.
        device: where the extractor runs.
        extractor: None where the caller extracts features.
        preprocess: what is done to images before they are extracted.
    """

    d: int
    protocol: dict[str, Any]
    device: torch.device
    extractor: Extractor | None = None
    preprocess: Callable[[Images], Images] = lambda images: images

    def __call__(self, images: Images) -> Tensor:
        """Features (N, d) of images; features, which have two dimensions, are returned as they are."""
        if isinstance(images, Tensor) and images.ndim == 2:
            return images
        if self.extractor is None:
            raise ValueError(
                f"features should have shape (N, {self.d}), and images need an extractor: pass features=EXTRACTOR or a "
                f"protocol's name; got {tuple(images.shape) if isinstance(images, Tensor) else 'a sequence'}"
            )
        return self.extractor(self.preprocess(images))


def feature_space(
    features: str | Extractor | int | None, reference: FeatureSet | None, device: str | torch.device
) -> FeatureSpace:
    """The space that a protocol's name, an extractor or a feature size names; None is that of the reference.

    Raises:
        UserError: an unknown protocol, or missing weights.
        ValueError: neither features nor a reference.
    """
    device = torch.device(device)
    if features is None:
        if reference is None:
            raise ValueError("name features (a protocol, an extractor or a feature size), or give a reference")
        return FeatureSpace(reference.d, reference.protocol, device)
    if isinstance(features, str):
        protocol = protocol_named(features)
        built = protocol.build_extractor(device=device)
        return FeatureSpace(built.dim, protocol.record(built), device, built, protocol.preprocess)
    if isinstance(features, int):
        return FeatureSpace(features, {} if reference is None else reference.protocol, device)
    return FeatureSpace(features.dim, features.protocol, device, features)
