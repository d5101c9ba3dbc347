"""What the pictures of a sweep are asked for and compared with, seed by seed: prompts, reference, real pictures.

    emoji set      per seed a permutation draws `pictures` training pictures: their captions are the prompts, all the
                   other training pictures the reference, and they themselves the floor; held-out concepts show how
                   far from the training set an honest picture lies
    prompts file   its first `pictures` lines, one reference for all seeds, and real pictures for the floor if given

Notable:
- features are measured (or read from the cache) by `measure`, and only if it is called: a sweep whose cells are all
  there needs none;
- `identity` names the contents of all that the numbers of a cell depend on, and is known before;
- in an emoji set the nearest training picture is sought in the whole training set, the prompts' own pictures included,
  so that a generator that has learned them by heart shows it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.data.emoji import load_emoji
from diffdistill.errors import UserError
from diffdistill.evaluation.extractors import Extractor
from diffdistill.evaluation.measure import (
    FEWEST,
    SUFFIX,
    Features,
    Reading,
    check_metrics,
    collect,
    load_features,
    read_reference,
)
from diffdistill.evaluation.protocols import Protocol
from diffdistill.evaluation.reading import Source, open_source
from diffdistill.evaluation.states import FeatureRows


class Training(NamedTuple):
    """Features of training pictures, and the pictures themselves: row i is of picture i."""

    features: FeatureRows
    pictures: Source


class Real(NamedTuple):
    """Real pictures in the place of a generator's.

    features: of as many pictures as a cell has. captioned: the pictures of the prompts, in their order, None where no
    picture belongs to a prompt. unseen: features and pictures that are not of the training set, None where
    there are none.
    """

    features: Features
    captioned: Source | None
    unseen: tuple[FeatureRows, Source] | None


class Stack(Source):
    """Pictures in hand: uint8 Tensor of shape (N, 3, H, W), and a label each."""

    def __init__(self, images: Tensor, labels: Sequence[str], name: str) -> None:
        self.images, self._labels, self.name = images, list(labels), name

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> str:
        return self._labels[index]

    def read_bytes(self, index: int) -> bytes:
        return f"{tuple(self.images.shape)}".encode() + self.images[index].numpy().tobytes()

    def read(self, index: int) -> Tensor:
        return self.images[index]


class Ground(ABC):
    """Prompts and reference of every seed of a sweep.

    Attributes:
        identity: of the reference, the training pictures and whatever else a generator's numbers depend on.
        real_identity: of the real pictures of the floor, beside that; None without a floor.
        n_reference: pictures in a reference.
        training: after `measure`, where nearest training pictures are sought; None where there are none.
    """

    identity: dict[str, Any]
    real_identity: dict[str, Any] | None
    n_reference: int
    training: Training | None = None

    @abstractmethod
    def prompts(self, seed: int) -> list[str]:
        """Picture i is of prompt i modulo their number."""

    @abstractmethod
    def measure(self, protocol: Protocol, extractor: Extractor, rows: bool, reading: Reading) -> None:
        """Features of all that is real, by all processes together; `rows` says whether the metrics need every row.

        Raises:
            UserError: a reference of another protocol, or without the rows that are needed.
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

    Raises:
        UserError: no emoji set, or more pictures than leave a reference.
    """

    def __init__(self, path: str | Path, pictures: int, metrics: Sequence[str], extractor: str) -> None:
        self.path, self.pictures = Path(path), pictures
        self._set, unseen = load_emoji(path), load_emoji(path, "heldout")
        self._unseen = Stack(unseen.images, unseen.captions, f"{path}, held-out concepts")
        self.n_reference = len(self._set) - pictures
        least = max(2, *(FEWEST.get(name, 2) for name in metrics))
        if self.n_reference < least:
            raise UserError(
                f"--pictures is {pictures}; the set has {len(self._set)}, of which {least} must stay as reference"
            )
        check_metrics(metrics, min(pictures, self.n_reference), extractor)
        digest = open_source(path).digest()
        self.identity = {"emoji": digest, "n": self.n_reference}
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
        return _some_rows(self._rows, chosen, name)

    def reference(self, seed: int) -> Features:
        return self._some(_order(len(self._set), seed)[self.pictures :], str(self.path))

    def real(self, seed: int) -> Real:
        chosen = _order(len(self._set), seed)[: self.pictures]
        drawn = self._set.subset(chosen)
        captioned = Stack(drawn.images, drawn.captions, f"{self.path}, the prompts' own pictures")
        unseen = None if self._unseen_rows is None else (self._unseen_rows, self._unseen)
        return Real(self._some(chosen, captioned.name), captioned, unseen)


class GivenGround(Ground):
    """Prompts and a reference that are the same for all seeds.

    Args:
        prompts: as many as there are; the first `pictures` are taken.
        pictures: of a cell.
        reference: pictures, or a file that `eval ref` wrote; only among pictures is the nearest one sought.
        real: pictures for the floor, of which each seed draws `pictures`; None for no floor.
        metrics: that are going to be asked for.
        extractor: its name.
        on_corrupt: what a corrupt real picture does; where some are left out, no nearest picture is sought.

    Raises:
        UserError: nothing there, or too few pictures.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        pictures: int,
        reference: str | Path,
        real: str | Path | None,
        metrics: Sequence[str],
        extractor: str,
        on_corrupt: str,
    ) -> None:
        self._prompts, self.pictures, self._path = list(prompts)[:pictures], pictures, Path(reference)
        self._source: Source | None = None
        if self._path.suffix == SUFFIX:
            self.n_reference = load_features(self._path).n
            digest = hashlib.sha256(self._path.read_bytes()).hexdigest()[:16]
            self.identity = {"features": digest, "n": self.n_reference}
        else:
            self._source = open_source(self._path)
            self.n_reference = len(self._source)
            self.identity = {"pictures": self._source.digest(), "n": self.n_reference, "on_corrupt": on_corrupt}
        check_metrics(metrics, min(pictures, self.n_reference), extractor)
        self._real_path, self._real_source = real, None if real is None else open_source(real)
        self.real_identity = None
        if self._real_source is not None:
            if len(self._real_source) < pictures:
                raise UserError(f"--real {real} holds {len(self._real_source)} pictures; a cell has {pictures}")
            self.real_identity = {"pictures": self._real_source.digest(), "on_corrupt": on_corrupt}
        self._features: Features | None = None
        self._real_rows: FeatureRows | None = None

    def prompts(self, seed: int) -> list[str]:
        return self._prompts

    def measure(self, protocol: Protocol, extractor: Extractor, rows: bool, reading: Reading) -> None:
        rows = rows or self._source is not None
        self._features = read_reference(self._path, protocol, extractor, rows, reading)
        found, source = self._features, self._source
        if source is not None and isinstance(found, FeatureRows) and found.n == len(source):  # else not in step
            self.training = Training(found, source)
        if self._real_path is not None:
            real = read_reference(self._real_path, protocol, extractor, True, reading)
            assert isinstance(real, FeatureRows)
            self._real_rows = real

    def reference(self, seed: int) -> Features:
        assert self._features is not None, "measure comes first"
        return self._features

    def real(self, seed: int) -> Real | None:
        if self._real_source is None or self._real_rows is None:
            return None
        rows = self._real_rows
        whole = rows.n == len(self._real_source)
        drawn = _some_rows(rows, _order(rows.n, seed)[: self.pictures], rows.source)
        return Real(drawn, None, (rows, self._real_source) if whole else None)


def _some_rows(rows: FeatureRows, chosen: list[int], name: str) -> FeatureRows:
    some = FeatureRows(rows.d, rows.protocol, name)
    some.update(rows.features[chosen])
    return some


def _order(n: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
