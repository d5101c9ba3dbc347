"""The distances as things that are fed batch by batch: `update`, `compute`, `merge`, `reset`, `all_reduce`.

Notable:
- the reference is given once and checked before any image is generated; `reset` keeps it;
- `FrechetDistance` needs constant memory; the others keep every feature, on the CPU (30,000 images of 2048 float32:
  246 MB);
- what `compute` returns is what the pure function returns for all rows at once, whatever the batches;
- shares of several processes come back in the order of the images if process r of w took r, r + w, r + 2w ...
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from diffdistill.evaluation.distances.cmmd import cmmd
from diffdistill.evaluation.distances.frechet import FrechetTerms, frechet_terms
from diffdistill.evaluation.distances.inception_score import inception_score
from diffdistill.evaluation.distances.kernel import kernel_distance, kernel_distance_subsets
from diffdistill.evaluation.distances.neighbours import Neighbourhoods, prdc
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.feature_set import require_same_protocol
from diffdistill.evaluation.features.statistics import FeatureStatistics

S = TypeVar("S", FeatureStatistics, FeatureRows)


class State(ABC, Generic[S]):
    """Generated features that come batch by batch, and the reference they are compared with.

    Args:
        reference: features of real images.
        generated: an empty set under the protocol by which the generated images are measured.

    Raises:
        UserError: the protocols differ.
        ValueError: the feature sizes differ.
    """

    def __init__(self, reference: S | None, generated: S) -> None:
        if reference is not None:
            require_same_protocol(generated, reference)
            if generated.d != reference.d:
                raise ValueError(f"features should have size {reference.d} as the reference's, got {generated.d}")
        self.reference: S | None = reference
        self.generated: S = generated

    def update(self, features: Tensor) -> None:
        """Takes in generated rows, a Tensor of shape (N, d).

        Raises:
            ValueError: another shape, another dtype, or values that are not finite. Nothing is taken in then.
        """
        self.generated.update(features)

    def merge(self, other: Self) -> None:
        """Takes in the generated rows of another state.

        Raises:
            UserError: the other was measured under another protocol.
        """
        self.generated.merge(other.generated)

    def reset(self) -> None:
        """Forgets the generated rows; the reference stays."""
        self.generated = self.generated.empty()

    def all_reduce(self) -> Self:
        """A state that holds the generated rows of all processes; this one stays as it is.

        Raises:
            UserError: the processes disagree about protocol or feature size; on all of them.
        """
        total = copy.copy(self)
        total.generated = self.generated.all_reduce()
        return total

    def _real(self) -> S:
        assert self.reference is not None
        return self.reference

    @abstractmethod
    def compute(self) -> Any:
        """What the pure function returns for all rows so far; it raises what that raises."""


class FrechetDistance(State[FeatureStatistics]):
    """Twin of `frechet_terms`.

    Args:
        reference: statistics of real images.
        protocol: by which the generated images are measured; has to be the reference's.
        device: where sums are kept and Gram matrices computed.

    >>> reference = FeatureStatistics(1, {"extractor": "tiny"})
    >>> reference.update(torch.tensor([[-1.0], [1.0]]))
    >>> fd = FrechetDistance(reference, {"extractor": "tiny"})
    >>> fd.update(torch.tensor([[2.0]]))
    >>> fd.update(torch.tensor([[4.0]]))
    >>> fd.compute().total
    9.0
    """

    def __init__(
        self, reference: FeatureStatistics, protocol: Mapping[str, Any], device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(reference, FeatureStatistics(reference.d, protocol, "generated", device))

    def compute(self) -> FrechetTerms:
        return frechet_terms(self.generated, self._real())


class KernelDistance(State[FeatureRows]):
    """Twin of `kernel_distance`, or of `kernel_distance_subsets` where `subset_size` is given.

    Args:
        reference: features of real images.
        protocol: by which the generated images are measured; has to be the reference's.
        subset_size: rows a subset; None takes every pair.
        subsets: how many.
        seed: of the subsets.
    """

    def __init__(
        self,
        reference: FeatureRows,
        protocol: Mapping[str, Any],
        subset_size: int | None = None,
        subsets: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(reference, FeatureRows(reference.d, protocol, "generated"))
        self.subset_size = subset_size
        self.subsets = subsets
        self.seed = seed

    def compute(self) -> tuple[float, float]:
        x, y = self.generated.features, self._real().features
        if self.subset_size is None:
            return kernel_distance(x, y)
        return kernel_distance_subsets(x, y, self.subset_size, self.subsets, self.seed)


class CMMD(State[FeatureRows]):
    """Twin of `cmmd`.

    Args:
        reference: embeddings of real images.
        protocol: by which the generated images are measured; has to be the reference's.
        unbiased: leave the diagonals out.
    """

    def __init__(self, reference: FeatureRows, protocol: Mapping[str, Any], unbiased: bool = False) -> None:
        super().__init__(reference, FeatureRows(reference.d, protocol, "generated"))
        self.unbiased = unbiased

    def compute(self) -> float:
        return cmmd(self.generated.features, self._real().features, self.unbiased)


class PRDC(State[FeatureRows]):
    """Twin of `prdc`.

    Args:
        reference: features of real images.
        protocol: by which the generated images are measured; has to be the reference's.
        k_precision: neighbours for precision and recall.
        k_density: neighbours for density and coverage.
    """

    def __init__(
        self, reference: FeatureRows, protocol: Mapping[str, Any], k_precision: int = 3, k_density: int = 5
    ) -> None:
        super().__init__(reference, FeatureRows(reference.d, protocol, "generated"))
        self.k_precision = k_precision
        self.k_density = k_density

    def compute(self) -> Neighbourhoods:
        return prdc(self.generated.features, self._real().features, self.k_precision, self.k_density)


class InceptionScore(State[FeatureRows]):
    """Twin of `inception_score`; it needs no reference, and with more than one split the order of updates matters.

    Args:
        classes: size of a row of logits.
        protocol: by which the generated images are measured.
        splits: how many.
        shuffle_seed: of a permutation of the rows; None leaves them in order.
    """

    def __init__(
        self, classes: int, protocol: Mapping[str, Any], splits: int = 10, shuffle_seed: int | None = None
    ) -> None:
        super().__init__(None, FeatureRows(classes, protocol, "generated"))
        self.splits = splits
        self.shuffle_seed = shuffle_seed

    def compute(self) -> tuple[float, float]:
        return inception_score(self.generated.features, self.splits, self.shuffle_seed)
