"""The distances as objects that take images batch by batch: `update`, `compute`, `reset`, `merge_state`, `all_reduce`.

    images  -> extractor -> features (N, d) \\
                                             generated or real rows -> compute
    features (N, d) -----------------------/

Notable:
- images and features are both taken: a Tensor of two dimensions is features, and anything else is images;
- the value does not depend on the batches: it is that of the pure function on all rows at once;
- `FrechetDistance` needs constant memory; the others keep every feature, on the CPU (30,000 images of 2048 float32
  numbers: 246 MB);
- rows of several processes come back in the order of the images if process r of w took images r, r + w, r + 2w, ...
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Generic, Self, TypeVar

import torch

from diffdistill.evaluation.distances.cmmd import cmmd
from diffdistill.evaluation.distances.frechet import FrechetTerms, frechet_terms
from diffdistill.evaluation.distances.inception_score import inception_score
from diffdistill.evaluation.distances.kernel import kernel_distance, kernel_distance_subsets
from diffdistill.evaluation.distances.neighbours import Neighbourhoods, prdc
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.feature_set import require_same_protocol
from diffdistill.evaluation.features.space import Images, feature_space
from diffdistill.evaluation.features.statistics import FeatureStatistics

S = TypeVar("S", FeatureStatistics, FeatureRows)


class SetDistance(ABC, Generic[S]):
    """A distance between two sets of images, real and generated, which come batch by batch.

    Args:
        features: what images become. A protocol's name, as "mobilenet-offline" or "clean", builds the protocol's
            extractor and crops, resizes and quantises as it says; an `Extractor` takes images rounded to 8 bits; a
            number d is the size of features that the caller extracts. None takes the size from `reference`.
        reference: features of all real images, where they are known already. No other real images can be added then.
        device: where an extractor built by name runs.

    Attributes:
        protocol: what a number has to carry.
        generated, real: the features so far.

    Raises:
        UserError: an unknown protocol, missing weights, or a reference that was measured under another protocol.
        ValueError: neither features nor a reference, or feature sizes that differ.
    """

    def __init__(
        self,
        features: str | Extractor | int | None = None,
        reference: S | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self._space = feature_space(features, reference, device)
        self.protocol = self._space.protocol
        self.generated: S = self._empty("generated")
        self.real: S = self._empty("real") if reference is None else reference
        self._given = reference is not None
        if reference is not None:
            require_same_protocol(self.generated, reference)
            if reference.d != self._space.d:
                raise ValueError(f"features should have size {reference.d} as the reference's, got {self._space.d}")

    @abstractmethod
    def _empty(self, source: str) -> S:
        """A set without rows, of this distance's kind."""

    @abstractmethod
    def compute(self) -> Any:
        """The value of all images so far, as the pure function gives it; raises what the function raises."""

    def update(self, images: Images, real: bool = False) -> None:
        """Take in a batch.

        Args:
            images: Tensor of shape (N, 3, H, W), or a sequence of N tensors of shape (3, H, W), uint8 or floating point
                in [0, 1]; or features, a floating-point Tensor of shape (N, d).
            real: whether the images are real ones; otherwise they are generated.

        Raises:
            ValueError: another shape, dtype or range, values that are not finite, images where no extractor is known,
                or real images beside a given reference. Nothing is taken in then.
        """
        if real and self._given:
            raise ValueError("the reference was given, and holds all real images; build the distance without it")
        rows = self._space(images)
        (self.real if real else self.generated).update(rows)

    def __call__(self, images: Images, real: bool = False) -> Any:
        """Take in a batch, and return the value of this batch alone against all real images so far.

        A distance of few images says little; `compute` gives the value of all of them. Real images give None.
        """
        if real:
            self.update(images, real=True)
            return None
        rows = self._space(images)
        alone = copy.copy(self)
        alone.generated = self.generated.empty()
        alone.generated.update(rows)
        self.generated.update(rows)
        return alone.compute()

    def reset(self, real: bool = False) -> None:
        """Forget the generated images, and with `real` also the real ones. A given reference always stays."""
        self.generated = self.generated.empty()
        if real and not self._given:
            self.real = self.real.empty()

    def merge_state(self, other: Self) -> None:
        """Take in the images of another distance of this kind; a given reference is not counted twice.

        Raises:
            UserError: the other was measured under another protocol.
        """
        self.generated.merge(other.generated)
        if not self._given:
            self.real.merge(other.real)

    def all_reduce(self) -> Self:
        """A distance that holds the images of all processes; this one stays as it is.

        Raises:
            UserError: the processes disagree about protocol or feature size; on all of them.
        """
        total = copy.copy(self)
        total.generated = self.generated.all_reduce()
        if not self._given:
            total.real = self.real.all_reduce()
        return total


class FrechetDistance(SetDistance[FeatureStatistics]):
    """The Frechet distance, in constant memory; twin of `frechet_distance`.

    It is FID only on FID's own Inception network: `FrechetDistance("clean")` with the published weights.

    Args:
        features, reference, device: as in `SetDistance`; the reference is statistics. Sums are kept on the device.

    >>> distance = FrechetDistance(features=1)
    >>> distance.update(torch.tensor([[-1.0], [1.0]]), real=True)
    >>> distance.update(torch.tensor([[2.0]]))
    >>> distance.update(torch.tensor([[4.0]]))
    >>> distance.compute()
    9.0
    """

    def _empty(self, source: str) -> FeatureStatistics:
        return FeatureStatistics(self._space.d, self.protocol, source, self._space.device)

    def compute(self) -> float:
        """The squared distance of all images so far. Raises ValueError with fewer than 2 on a side."""
        return self.terms().total

    def terms(self) -> FrechetTerms:
        """The distance in its two parts, of the means and of the covariances."""
        return frechet_terms(self.generated, self.real)


class RowDistance(SetDistance[FeatureRows]):
    """A distance that needs every row of both sides."""

    def _empty(self, source: str) -> FeatureRows:
        return FeatureRows(self._space.d, self.protocol, source)


class KernelDistance(RowDistance):
    """The kernel distance; twin of `kernel_distance`, or of `kernel_distance_subsets` where `subset_size` is given.

    Args:
        features, reference, device: as in `SetDistance`; the reference is rows.
        subset_size: number of rows in a subset; None takes every pair.
        subsets: number of subsets.
        seed: of the subsets.

    >>> distance = KernelDistance(features=1)
    >>> distance.update(torch.tensor([[1.0], [2.0], [3.0]]), real=True)
    >>> distance.update(torch.tensor([[0.0], [1.0], [2.0]]))
    >>> round(distance.compute()[0], 6)
    21.666667
    """

    def __init__(
        self,
        features: str | Extractor | int | None = None,
        reference: FeatureRows | None = None,
        device: str | torch.device = "cpu",
        subset_size: int | None = None,
        subsets: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(features, reference, device)
        self.subset_size, self.subsets, self.seed = subset_size, subsets, seed

    def compute(self) -> tuple[float, float]:
        """The distance and its standard error; with subsets, the mean and the standard deviation over them."""
        x, y = self.generated.features, self.real.features
        if self.subset_size is None:
            return kernel_distance(x, y)
        return kernel_distance_subsets(x, y, self.subset_size, self.subsets, self.seed)


class CMMD(RowDistance):
    """The maximum mean discrepancy of CLIP embeddings; twin of `cmmd`.

    Args:
        features, reference, device: as in `SetDistance`; the reference is rows.
        unbiased: leave the diagonals out.
    """

    def __init__(
        self,
        features: str | Extractor | int | None = None,
        reference: FeatureRows | None = None,
        device: str | torch.device = "cpu",
        unbiased: bool = False,
    ) -> None:
        super().__init__(features, reference, device)
        self.unbiased = unbiased

    def compute(self) -> float:
        """The discrepancy of all images so far."""
        return cmmd(self.generated.features, self.real.features, self.unbiased)


class PRDC(RowDistance):
    """Precision, recall, density and coverage; twin of `prdc`.

    Args:
        features, reference, device: as in `SetDistance`; the reference is rows.
        k_precision: neighbours for precision and recall.
        k_density: neighbours for density and coverage.
    """

    def __init__(
        self,
        features: str | Extractor | int | None = None,
        reference: FeatureRows | None = None,
        device: str | torch.device = "cpu",
        k_precision: int = 3,
        k_density: int = 5,
    ) -> None:
        super().__init__(features, reference, device)
        self.k_precision, self.k_density = k_precision, k_density

    def compute(self) -> Neighbourhoods:
        """The four numbers of all images so far."""
        return prdc(self.generated.features, self.real.features, self.k_precision, self.k_density)


class InceptionScore(RowDistance):
    """The Inception score; twin of `inception_score`. It looks at generated images alone.

    With more than one split the order of the updates matters.

    Args:
        features: an extractor of class logits, `InceptionFeatures(features="logits_unbiased")`; or the number of
            classes, for logits that the caller extracts.
        splits: number of splits.
        shuffle_seed: of a permutation of the rows; None leaves them in order.
    """

    def __init__(self, features: Extractor | int, splits: int = 10, shuffle_seed: int | None = None) -> None:
        if isinstance(features, Extractor) and "logits" not in features.name:
            raise ValueError(f"an Inception score needs class logits, and {features.name} gives features")
        super().__init__(features)
        self.splits, self.shuffle_seed = splits, shuffle_seed

    def update(self, images: Images, real: bool = False) -> None:
        """Take in a batch of generated images or logits; as `SetDistance.update`."""
        if real:
            raise ValueError("an Inception score looks at generated images alone; leave out real=True")
        super().update(images)

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits."""
        return inception_score(self.generated.features, self.splits, self.shuffle_seed)
