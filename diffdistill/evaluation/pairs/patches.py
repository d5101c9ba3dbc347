"""Distances between distributions of patches, for codecs: few large images give many patches.

    image -> patches of side f from the corner, then from f / 2 down and right -> extractor -> FD and KD

Notable:
- a distance over patches does not compare with one over whole images, and its protocol says which of the two it is;
- patches overlap and share images, so the standard error of the kernel distance, which takes patches as independent,
  is too small;
- the number is the FID/256 or KID/256 of codec papers only with FID's Inception network and side 256, and at the number
  of patches that their data set gives: with few patches the Frechet distance is biased upwards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from diffdistill.evaluation.distances.frechet import FrechetTerms, frechet_terms
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.features.base import Extractor, to_uint8
from diffdistill.evaluation.features.feature_rows import FeatureRows

SECOND_PASSES = ("hific", "all")


def extract_patches(image: Tensor, side: int = 256, second_pass: str = "hific") -> Tensor:
    """The patches of an image in two passes (Mentzer et al. 2020, arXiv 2006.09965, appendix A.7).

    The first pass takes the floor(H / f) floor(W / f) patches that lie side by side from the upper left corner, the
    second those from f / 2 down and right: (floor(H / f) - 1) (floor(W / f) - 1) of them by the paper ("hific"), or
    all that fit ("all", as NeuralCompression counts). The two differ where H or W leaves a rest of f / 2 or more.

    Args:
        image: Tensor of shape (C, H, W).
        side: f, in pixels; even.
        second_pass: one of `SECOND_PASSES`.

    Returns:
        Tensor of shape (P, C, f, f): the first pass row by row, then the second.

    Raises:
        ValueError: a wrong shape, an image smaller than a patch, an odd side, or an unknown choice.

    >>> image = torch.arange(24).view(1, 4, 6)
    >>> extract_patches(image, side=2)[:, 0, 0, 0].tolist()  # upper left corners
    [0, 2, 4, 12, 14, 16, 7, 9]
    """
    _check_patches(side, second_pass)
    if image.ndim != 3:
        raise ValueError(f"image should have shape (C, H, W), got {tuple(image.shape)}")
    height, width = image.shape[1:]
    if min(height, width) < side:
        raise ValueError(f"an image of {width}x{height} holds no patch of {side}x{side}")
    first = _grid(image, side)
    shifted = image[:, side // 2 :, side // 2 :]
    if second_pass == "hific":
        shifted = shifted[:, : (height // side - 1) * side, : (width // side - 1) * side]
    return torch.cat([first, _grid(shifted, side)])


class PatchFeatures:
    """Features of all patches of images, by any extractor.

    Args:
        extractor: an extractor of whole images, which resizes patches as it resizes images.
        side: of a patch in pixels; even.
        second_pass: one of `SECOND_PASSES`.

    Attributes:
        name: the extractor's name, with the side.
        dim: number of features d.
    """

    def __init__(self, extractor: Extractor, side: int = 256, second_pass: str = "hific") -> None:
        _check_patches(side, second_pass)
        self.extractor, self.side, self.second_pass = extractor, side, second_pass
        self.name, self.dim = f"{extractor.name}/patch-{side}", extractor.dim

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number made from these features has to carry."""
        return {**self.extractor.protocol, "patches": {"side": self.side, "second_pass": self.second_pass}}

    def __call__(self, images: Tensor | Sequence[Tensor], batch_size: int = 64) -> Tensor:
        """Features of the patches of images, image by image, in the order of `extract_patches`.

        Args:
            images: Tensor of shape (N, 3, H, W), or a sequence of tensors of shape (3, H, W) that may differ in size;
                uint8 in [0, 255] or floating point in [0, 1].
            batch_size: number of patches measured at a time. It bounds memory; features do not depend on it.

        Returns:
            Tensor of shape (P, dim), float32, on the CPU.

        Raises:
            ValueError: an image, by its number, that is smaller than a patch, of wrong shape or dtype, or outside
                [0, 1].
        """
        if batch_size < 1:
            raise ValueError(f"batch_size should be at least 1, got {batch_size}")
        done, waiting, n = [], [], 0
        for patches in self._patches(images):
            waiting.append(patches)
            n += len(patches)
            if n >= batch_size:
                done.append(self.extractor(torch.cat(waiting), batch_size))
                waiting, n = [], 0
        if waiting:
            done.append(self.extractor(torch.cat(waiting), batch_size))
        return torch.cat(done) if done else torch.empty(0, self.dim)

    def _patches(self, images: Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
        for number, image in enumerate(images):
            if image.ndim != 3 or len(image) != 3:
                raise ValueError(f"images[{number}] should have shape (3, H, W), got {tuple(image.shape)}")
            try:
                yield extract_patches(to_uint8(image), self.side, self.second_pass)
            except ValueError as error:
                raise ValueError(f"images[{number}]: {error}") from None


class PatchScore(NamedTuple):
    """Distances between two sets of patches.

    Attributes:
        frechet: mean term and trace term.
        kernel: the unbiased kernel distance over all patches.
        kernel_standard_error: with patches taken as independent, so that it is a lower bound.
        n: number of patches of the reconstructions.
        n_reference: number of patches of the originals.
    """

    frechet: FrechetTerms
    kernel: float
    kernel_standard_error: float
    n: int
    n_reference: int


def patch_distance(
    reconstructions: Tensor | Sequence[Tensor], originals: Tensor | Sequence[Tensor], features: PatchFeatures
) -> PatchScore:
    """Frechet and kernel distance between the patches of reconstructions and of originals.

    Args:
        reconstructions: Tensor of shape (N, 3, H, W), or a sequence of tensors of shape (3, H, W) that may differ in
            size; uint8, or floating point in [0, 1], which is rounded to 8 bits.
        originals: the same.
        features: which patches and which extractor.

    Raises:
        ValueError: an image that is smaller than a patch, of wrong shape or dtype, or outside [0, 1]; fewer than 3
            patches on a side.
    """
    state = PatchDistance(features)
    state.update(reconstructions, originals)
    return state.compute()


class PatchDistance:
    """The distances between patches that come batch by batch, of both sides; twin of `patch_distance`.

    It keeps every feature, on the CPU.

    Args:
        features: which patches and which extractor.
    """

    def __init__(self, features: PatchFeatures) -> None:
        self.features = features
        self.protocol = features.protocol
        self._rows = FeatureRows(features.dim, self.protocol, "reconstructions")
        self._reference = FeatureRows(features.dim, self.protocol, "originals")

    def update(self, reconstructions: Tensor | Sequence[Tensor], originals: Tensor | Sequence[Tensor]) -> None:
        """Take in images of both sides; arguments and errors as in `patch_distance`. Either side may be empty."""
        rows, reference = self.features(reconstructions), self.features(originals)
        self._rows.update(rows)
        self._reference.update(reference)

    def compute(self) -> PatchScore:
        """The distances over all patches so far. Raises ValueError with fewer than 3 patches on a side."""
        x, y = self._rows.features, self._reference.features
        kernel, standard_error = kernel_distance(x, y)
        frechet = frechet_terms(self._rows.statistics(), self._reference.statistics())
        return PatchScore(frechet, kernel, standard_error, len(x), len(y))

    def __call__(self, reconstructions: Tensor | Sequence[Tensor], originals: Tensor | Sequence[Tensor]) -> PatchScore:
        """Take in images of both sides, and return the distances over their patches alone; as `update`."""
        alone = copy.copy(self)
        alone.reset()
        alone.update(reconstructions, originals)
        self.merge_state(alone)
        return alone.compute()

    def merge_state(self, other: PatchDistance) -> None:
        """Take in the patches of another. Raises UserError where it was measured under another protocol."""
        self._rows.merge(other._rows)
        self._reference.merge(other._reference)

    def reset(self) -> None:
        """Forget all patches, of both sides."""
        self._rows, self._reference = self._rows.empty(), self._reference.empty()

    def all_reduce(self) -> Self:
        """The distances over the patches of all processes; this one stays as it is.

        Raises:
            UserError: the processes measure under different protocols; on all of them.
        """
        total = copy.copy(self)
        total._rows, total._reference = self._rows.all_reduce(), self._reference.all_reduce()
        return total


def _check_patches(side: int, second_pass: str) -> None:
    if side < 2 or side % 2:
        raise ValueError(f"side should be even and at least 2, got {side}")
    if second_pass not in SECOND_PASSES:
        raise ValueError(f"second_pass should be one of {', '.join(SECOND_PASSES)}, got {second_pass!r}")


def _grid(image: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (P, C, side, side), by rows; none where the image is smaller than a patch."""
    if min(image.shape[1:]) < side:
        return image.new_empty(0, len(image), side, side)
    return image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
