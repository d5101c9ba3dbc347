"""What the pictures of a sweep are asked for and compared with, seed by seed: prompts, reference, real pictures.

    emoji set      per seed a permutation draws `pictures` training pictures: their captions are the prompts, all the
                   other training pictures the reference, and they themselves the floor; held-out concepts show how
                   far from the training set an honest picture lies
    prompts file   its first `pictures` lines, one reference for all seeds, and real pictures for the floor if given

Notable:
- features are measured (or read from the cache) by `measure`, and only if it is called: a sweep whose cells are all
  there needs none;
- `identity` names the contents of all that the numbers of a cell depend on, and is known before;
- of a prompts file, what a generator was trained on is not known: nearest pictures are sought in the reference;
- in an emoji set the nearest training picture is sought in the whole training set, the prompts' own pictures included,
  so that a generator that has learned them by heart shows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffdistill.data.emoji import load_emoji
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
    """Features of training pictures, and the pictures themselves: row i is of picture i."""

    features: FeatureRows
    pictures: Source


class Unseen(NamedTuple):
    """Pictures that are not of the training set, the same for every seed.

    pictures: row i of the features is of picture i; None where there are features alone. captions: of each, None where
    they have none, or are not of concepts held out.
    """

    features: FeatureRows
    pictures: Source | None
    captions: list[str] | None


class Real(NamedTuple):
    """Real pictures in the place of a generator's.

    features: of as many pictures as a cell has. captioned: the pictures of the prompts, in their order, None where no
    picture belongs to a prompt. unseen: None where there are none.
    """

    features: Features
    captioned: Source | None
    unseen: Unseen | None


class Ground(ABC):
    """Prompts and reference of every seed of a sweep.

    Attributes:
        name: how the record names the reference.
        identity: of the reference, the training pictures and whatever else a generator's numbers depend on.
        real_identity: of the real pictures of the floor, beside that; None without a floor.
        prompts_of: "training", captions of an emoji set, or "file".
        nearest_of: "training" or "reference": what `training` is.
        reference_source: the pictures that are the whole reference of every seed; None where it is something else.
        training: after `measure`, where nearest pictures are sought; None where there are none.
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
        """Features of all that is real, by all processes together; `rows` says whether the metrics need every row.

        Raises:
            UserError: features of another protocol, without the rows that are needed, or of too few pictures.
        """

    @abstractmethod
    def reference(self, seed: int) -> Features:
        """After `measure`."""

    @abstractmethod
    def real(self, seed: int) -> Real | None:
        """After `measure`; None without a floor."""


class EmojiGround(Ground):
    """An emoji set, split anew for each seed.

    Args:
        path: folder laid out as assets/emoji.
        pictures: drawn per seed.
        metrics: that the split has to leave enough pictures for.
        extractor: its name.
        name: how the record names the set; the path by default.

    Raises:
        UserError: no emoji set, or more pictures than leave a reference.
    """

    prompts_of = nearest_of = "training"

    def __init__(
        self, path: str | Path, pictures: int, metrics: Sequence[str], extractor: str, name: str | None = None
    ) -> None:
        self.path, self.pictures, self.name = Path(path), pictures, name or str(path)
        self._set, unseen = load_emoji(path), load_emoji(path, "heldout")
        self._unseen = InMemory(unseen.images, unseen.captions, f"{path}, held-out concepts")
        left = len(self._set) - pictures
        least = max(2, *(FEWEST.get(name, 2) for name in metrics))
        if left < least:
            raise UserError(
                f"images is {pictures}; the set has {len(self._set)}, of which {least} must stay as reference"
            )
        check_metrics(metrics, min(pictures, left), extractor)
        digest = open_source(path).digest()
        self.identity = {"emoji": digest, "n": left}
        self.real_identity = {"emoji": digest, "heldout": self._unseen.digest()}
        self._rows: FeatureRows | None = None
        self._unseen_rows: FeatureRows | None = None

    def prompts(self, seed: int) -> list[str]:
        captions = self._set.captions
        return [captions[i] for i in _order(len(self._set), seed)[: self.pictures]]

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
        assert self._rows is not None, "measure comes first"
        rows = chosen_rows(self._rows, torch.tensor(chosen))
        rows.source = name
        return rows

    def reference(self, seed: int) -> Features:
        return self._some(_order(len(self._set), seed)[self.pictures :], str(self.path))

    def real(self, seed: int) -> Real:
        chosen = _order(len(self._set), seed)[: self.pictures]
        drawn = self._set.subset(chosen)
        captioned = InMemory(drawn.images, drawn.captions, f"{self.path}, the prompts' own pictures")
        held_out = self._unseen
        unseen = None if self._unseen_rows is None else Unseen(self._unseen_rows, held_out, held_out.captions())
        return Real(self._some(chosen, captioned.name), captioned, unseen)


class GivenGround(Ground):
    """Prompts and a reference that are the same for all seeds.

    Args:
        prompts: as many as there are; the first `pictures` are taken.
        pictures: of a cell.
        reference: pictures, or a file that `eval ref` wrote; only among pictures is the nearest one sought.
        real: pictures or such a file, for the floor, of which each seed draws `pictures`; None for no floor.
        metrics: that are going to be asked for.
        extractor: its name.
        on_corrupt: what a corrupt real picture does; where some are left out, no nearest picture is sought.
        name: how the record names the reference; its path by default.

    Raises:
        UserError: nothing there, too few pictures, or real ones that are the reference itself.
    """

    prompts_of, nearest_of = "file", "reference"

    def __init__(
        self,
        prompts: Sequence[str],
        pictures: int,
        reference: str | Path,
        real: str | Path | None,
        metrics: Sequence[str],
        extractor: str,
        on_corrupt: str,
        name: str | None = None,
    ) -> None:
        self._prompts, self.pictures, self._path = list(prompts)[:pictures], pictures, Path(reference)
        self._metrics, self.name = list(metrics), name or str(reference)
        self._source, self.identity = _opened(self._path, on_corrupt)
        self.reference_source = self._source
        check_metrics(metrics, pictures if self._source is None else min(pictures, len(self._source)), extractor)
        self._real_path, self._real_source, self.real_identity = real, None, None
        if real is not None:
            self._real_source, self.real_identity = _opened(Path(real), on_corrupt)
            if self.real_identity == self.identity:
                raise UserError(f"real {real} is the reference itself; name other real pictures")
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
        check_metrics(self._metrics, min(self.pictures, found.n), extractor.name)
        if source is not None and isinstance(found, FeatureRows) and found.n == len(source):  # else not in step
            self.training = Training(found, source)
        if self._real_path is not None:
            real = read_reference(self._real_path, protocol, extractor, True, reading)
            assert isinstance(real, FeatureRows)
            self._enough(real.n, real.n if self._real_source is None else len(self._real_source))
            if isinstance(found, FeatureRows) and torch.equal(real.features, found.features):
                raise UserError(f"real {self._real_path} is the reference itself; name other real pictures")
            self._real_rows = real

    def _enough(self, n: int, of: int) -> None:
        if n < self.pictures:
            holds = f"holds {of} pictures" if n == of else f"holds {of} pictures, of which {n} could be read"
            raise UserError(f"real {self._real_path} {holds}; a cell has {self.pictures}")

    def reference(self, seed: int) -> Features:
        assert self._features is not None, "measure comes first"
        return self._features

    def real(self, seed: int) -> Real | None:
        if self._real_rows is None:
            return None
        rows, source = self._real_rows, self._real_source
        drawn = chosen_rows(rows, torch.tensor(_order(rows.n, seed)[: self.pictures]))
        in_step = source is not None and rows.n == len(source)
        return Real(drawn, None, Unseen(rows, source if in_step else None, None))


def _opened(path: Path, on_corrupt: str) -> tuple[Source | None, dict[str, Any]]:
    """Pictures, None of a file of features, and what identifies their contents.

    Raises:
        UserError: nothing there.
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
