"""The prompts, the reference and the real images of a sweep, seed by seed.

    emoji set      for each seed, a permutation draws `images` training images. Their captions are the prompts, all
                   other training images are the reference, and they themselves are the floor. Images of held-out
                   concepts show how far from the training set an image lies that is no copy
    prompts file   its first `images` lines, one reference for all seeds, and real images for the floor if given

Notable:
- only `measure` measures features or reads them from the cache: a sweep whose cells are all there needs no features;
- `identity` names the contents of everything that the numbers of a cell depend on, and is known before `measure`;
- with a prompts file it is not known what a generator was trained on, so nearest images are sought in the reference;
- in an emoji set the nearest training image is sought in the whole training set, the prompts' own images included, so
  that a generator that has learned them by heart shows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffdistill.data.captioned import load_split
from diffdistill.data.in_memory import InMemory
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError
from diffdistill.evaluation.distances.floor import chosen_rows
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.weight_files import sha256_of
from diffdistill.evaluation.measure import Features, Reading, collect
from diffdistill.evaluation.metrics import FEWEST, check_metrics
from diffdistill.evaluation.protocols import Protocol
from diffdistill.evaluation.reference import SUFFIX, read_reference


class Training(NamedTuple):
    """Features of training images, and the images themselves; row i belongs to image i."""

    features: FeatureRows
    images: Source


class Unseen(NamedTuple):
    (
        """Images outside the training set, the same for every seed.

    Attributes:
        features: one row for each image.
        images: in the order of the rows; None where only features are known.
        captions: one for each image; None where they have none, or where their concepts were not held out.
    """
        ""
    )

    features: FeatureRows
    images: Source | None
    captions: list[str] | None


class Real(NamedTuple):
    """Real images in a generator's place.

    Attributes:
        features: of as many images as a cell has.
        captioned: the prompts' own images, in the prompts' order; None where no image belongs to a prompt.
        unseen: images outside the training set; None where there are none.
    """

    features: Features
    captioned: Source | None
    unseen: Unseen | None


class Ground(ABC):
    """Prompts and reference of every seed of a sweep.

    Attributes:
        name: how the record names the reference.
        identity: contents of the reference, of the training images and of whatever else a generator's numbers depend
            on.
        real_identity: contents of the floor's real images; None without a floor.
        prompts_of: "training" for captions of an emoji set, or "file".
        nearest_of: "training" or "reference": which images `training` holds.
        reference_source: the images that are the whole reference of every seed; None where there is no such set.
        training: where nearest images are sought, once `measure` was called; None where there is nothing to search.
    """

    name: str
    identity: dict[str, Any]
    real_identity: dict[str, Any] | None
    prompts_of: str
    nearest_of: str
    training: Training | None = None
    reference_source: Source | None = None

    @abstractmethod
    def prompts(self, seed: int) -> list[str]:
        """The prompts of a seed; image i is of prompt i modulo their number."""

    def captions(self, seed: int, n: int) -> list[str]:
        """The prompts of the first n images of a seed."""
        prompts = self.prompts(seed)
        return [prompts[i % len(prompts)] for i in range(n)]

    @abstractmethod
    def measure(self, protocol: Protocol, extractor: Extractor, rows: bool, reading: Reading) -> None:
        """Measure the features of everything that is real, by all processes together.

        Args:
            protocol, extractor, reading: how images are measured.
            rows: whether the metrics need every row.

        Raises:
            UserError: features of another protocol, without the rows that are needed, or of too few images.
        """

    @abstractmethod
    def reference(self, seed: int) -> Features:
        """The reference of a seed; known after `measure`."""

    @abstractmethod
    def real(self, seed: int) -> Real | None:
        """The real images of a seed, known after `measure`; None without a floor."""


class EmojiGround(Ground):
    """An emoji set, split again for each seed.

    Args:
        path: a folder laid out as assets/emoji.
        images: number of images that each seed draws.
        metrics: the split has to leave enough images for these.
        extractor: the extractor's name.
        name: how the record names the set; the path by default.

    Raises:
        UserError: no emoji set, or so many images that too few stay as the reference.
    """

    prompts_of = nearest_of = "training"

    def __init__(
        self, path: str | Path, images: int, metrics: Sequence[str], extractor: str, name: str | None = None
    ) -> None:
        self.path, self.images, self.name = Path(path), images, name or str(path)
        self._set, unseen = load_split(path), load_split(path, "heldout")
        self._unseen = InMemory(unseen.images, unseen.captions, f"{path}, held-out concepts")
        left = len(self._set) - images
        least = max(2, *(FEWEST.get(name, 2) for name in metrics))
        if left < least:
            raise UserError(
                f"images is {images}; the set has {len(self._set)}, of which {least} must stay as the reference"
            )
        check_metrics(metrics, min(images, left), extractor)
        digest = open_source(path).digest()
        self.identity = {"emoji": digest, "n": left}
        self.real_identity = {"emoji": digest, "heldout": self._unseen.digest()}
        self._rows: FeatureRows | None = None
        self._unseen_rows: FeatureRows | None = None

    def prompts(self, seed: int) -> list[str]:
        captions = self._set.captions
        return [captions[i] for i in _order(len(self._set), seed)[: self.images]]

    def measure(self, protocol: Protocol, extractor: Extractor, rows: bool, reading: Reading) -> None:
        found = read_reference(self.path, protocol, extractor, True, reading)
        assert isinstance(found, FeatureRows)
        self._rows = found
        self.training = Training(found, open_source(self.path))
        if len(self._unseen) > 1:
            unseen = collect(self._unseen, protocol, extractor, len(self._unseen), True, reading)
            assert isinstance(unseen, FeatureRows)
            self._unseen_rows = unseen

    def _some(self, chosen: list[int], name: str) -> FeatureRows:
        assert self._rows is not None, "`measure` has to be called first"
        rows = chosen_rows(self._rows, torch.tensor(chosen))
        rows.source = name
        return rows

    def reference(self, seed: int) -> Features:
        return self._some(_order(len(self._set), seed)[self.images :], str(self.path))

    def real(self, seed: int) -> Real:
        chosen = _order(len(self._set), seed)[: self.images]
        drawn = self._set.subset(chosen)
        captioned = InMemory(drawn.images, drawn.captions, f"{self.path}, the prompts' own images")
        held_out = self._unseen
        unseen = None if self._unseen_rows is None else Unseen(self._unseen_rows, held_out, held_out.captions())
        return Real(self._some(chosen, captioned.name), captioned, unseen)


class GivenGround(Ground):
    """Prompts and a reference that are the same for every seed.

    Args:
        prompts: at least one; the first `images` of them are taken.
        images: number of images in a cell.
        reference: images, or a file that `eval ref` wrote. Nearest images are sought only among images.
        real: images, or such a file, for the floor; each seed draws `images` of them. None for no floor.
        metrics: the metrics that will be measured.
        extractor: the extractor's name.
        on_corrupt: what a corrupt real image does. Where some are left out, no nearest image is sought.
        name: how the record names the reference; its path by default.

    Raises:
        UserError: no images at a path, too few images, or real images that are the reference itself.
    """

    prompts_of, nearest_of = "file", "reference"

    def __init__(
        self,
        prompts: Sequence[str],
        images: int,
        reference: str | Path,
        real: str | Path | None,
        metrics: Sequence[str],
        extractor: str,
        on_corrupt: str,
        name: str | None = None,
    ) -> None:
        self._prompts, self.images, self._path = list(prompts)[:images], images, Path(reference)
        self._metrics, self.name = list(metrics), name or str(reference)
        self._source, self.identity = _opened(self._path, on_corrupt)
        self.reference_source = self._source
        check_metrics(metrics, images if self._source is None else min(images, len(self._source)), extractor)
        self._real_path, self._real_source, self.real_identity = real, None, None
        if real is not None:
            self._real_source, self.real_identity = _opened(Path(real), on_corrupt)
            if self.real_identity == self.identity:
                raise UserError(f"real {real} is the reference itself; name other real images")
            if self._real_source is not None:
                self._enough(len(self._real_source), len(self._real_source))
        self._features: Features | None = None
        self._real_rows: FeatureRows | None = None

    def prompts(self, seed: int) -> list[str]:
        return self._prompts

    def measure(self, protocol: Protocol, extractor: Extractor, rows: bool, reading: Reading) -> None:
        rows = rows or self._source is not None
        self._features = read_reference(self._path, protocol, extractor, rows, reading)
        found, source = self._features, self._source
        check_metrics(self._metrics, min(self.images, found.n), extractor.name)
        if (
            source is not None and isinstance(found, FeatureRows) and found.n == len(source)
        ):  # otherwise rows and images are not in step
            self.training = Training(found, source)
        if self._real_path is not None:
            real = read_reference(self._real_path, protocol, extractor, True, reading)
            assert isinstance(real, FeatureRows)
            self._enough(real.n, real.n if self._real_source is None else len(self._real_source))
            if isinstance(found, FeatureRows) and torch.equal(real.features, found.features):
                raise UserError(f"real {self._real_path} is the reference itself; name other real images")
            self._real_rows = real

    def _enough(self, n: int, of: int) -> None:
        if n < self.images:
            holds = f"holds {of} images" if n == of else f"holds {of} images, of which {n} could be read"
            raise UserError(f"real {self._real_path} {holds}; a cell has {self.images}")

    def reference(self, seed: int) -> Features:
        assert self._features is not None, "`measure` has to be called first"
        return self._features

    def real(self, seed: int) -> Real | None:
        if self._real_rows is None:
            return None
        rows, source = self._real_rows, self._real_source
        drawn = chosen_rows(rows, torch.tensor(_order(rows.n, seed)[: self.images]))
        in_step = source is not None and rows.n == len(source)
        return Real(drawn, None, Unseen(rows, source if in_step else None, None))


def _opened(path: Path, on_corrupt: str) -> tuple[Source | None, dict[str, Any]]:
    """The images at a path (None for a file of features), and what identifies their contents.

    Raises:
        UserError: nothing is at the path.
    """
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        return None, {"features": sha256_of(path)}
    source = open_source(path)
    return source, {"pictures": source.digest(), "n": len(source), "on_corrupt": on_corrupt}


def _order(n: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
