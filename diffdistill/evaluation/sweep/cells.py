"""One cell of a sweep: what determines it, its numbers and pictures from one pass, and its file.

    OUT/cells/HASH.json           made_from: all that determines it; numbers; nearest_distances; facts
    OUT/cells/HASH-strip.png      the first pictures side by side        both for the first seed only; their
    OUT/cells/HASH-nearest.png    the same over their nearest training   hashes are in the JSON, which is written last

Notable:
- the pictures of a panel are fitted to squares of one side, at most 128 pixels, so that a report can show any;
- network passes are counted, not assumed; seconds are the median over chunks, and say on what they were measured;
- HASH is over `made_from`, so what an option changes is another cell, and what was measured once is never mixed up;
- a file that is damaged, or whose pictures are, counts as absent.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.data.source import Source
from diffdistill.evaluation.distances.neighbours import nearest
from diffdistill.evaluation.features.base import to_uint8
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.resize import resize
from diffdistill.evaluation.measure import Features, from_all_processes
from diffdistill.evaluation.metrics import distances
from diffdistill.evaluation.page.record import PICTURE_SIDE
from diffdistill.evaluation.sweep.ground import Training
from diffdistill.files import write_atomic, write_json_atomic

VERSION = 2
SAMPLES = 12  # pictures shown of a cell
NOT_NUMBERS = ("n", "n_reference", "reference", "protocol", "fd_mean_term")  # of what `distances` returns

Numbers = dict[str, float | None]


@dataclass
class Cell:
    """Numbers by name, None where not finite; of the first seed also distances and pictures, uint8 (3, H, W).

    facts: n_reference, pictures of the reference that were read; of a generator, nfe, network passes a picture, and
    timing, the threads and the device that seconds_per_image is of; of the floor, unseen, agreement of pictures of
    held-out concepts.
    """

    numbers: Numbers
    facts: dict[str, Any] = field(default_factory=dict)
    nearest_distances: list[float] | None = None
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def take_nearest(self, median: float, shown: list[float], panel: Tensor | None) -> None:
        """What `nearest_training` returns."""
        self.numbers["nearest_median"] = median
        if panel is not None:
            self.nearest_distances, self.pictures["nearest"] = shown, panel


class Watched(Source):
    """A generator's pictures, timed as they are made, of which the first `keep` are kept as this process makes them.

    Args:
        source: of which batches are made at once.
        keep: pictures 0 .. keep - 1 are kept.
        chunk: pictures the generator makes at a time; those it fills up with count as made.
        network: whose passes are counted, by the rows of its first argument.
    """

    together = True

    def __init__(self, source: Source, keep: int, chunk: int, network: nn.Module) -> None:
        self._source, self._keep, self._chunk, self._network = source, keep, chunk, network
        self.name, self._kept = source.name, dict[int, Tensor]()
        self._seconds: list[float] = []  # of every chunk
        self._passes = 0

    def __len__(self) -> int:
        return len(self._source)

    def label(self, index: int) -> str:
        return self._source.label(index)

    def read_bytes(self, index: int) -> bytes:
        return self._source.read_bytes(index)

    def read_many(self, indices: Sequence[int]) -> list[Tensor]:
        made = []
        counter = self._network.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            for start in range(0, len(indices), self._chunk):
                started = time.perf_counter()
                made += self._source.read_many(indices[start : start + self._chunk])
                self._seconds.append(time.perf_counter() - started)
        finally:
            counter.remove()
        self._kept.update((i, image) for i, image in zip(indices, made, strict=True) if i < self._keep)
        return made

    def _count(self, network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._passes += len(args[0] if args else next(iter(named.values())))

    def seconds_per_image(self) -> float:
        """Of generation alone: wall time of a process, the median over the chunks of all processes."""
        chunks = [seconds for part in from_all_processes(self._seconds) for seconds in part]
        return statistics.median(chunks) / self._chunk

    def nfe(self) -> int:
        """Network passes a picture, guidance's second one counted."""
        everyone = from_all_processes((self._passes, len(self._seconds)))
        return round(sum(n for n, _ in everyone) / (self._chunk * sum(chunks for _, chunks in everyone)))

    def kept(self, truncate: bool) -> list[Tensor]:
        """On every process, the pictures kept by any, in order, as bytes."""
        mine = {i: to_uint8(image, truncate) for i, image in self._kept.items()}
        found = {i: image for part in from_all_processes(mine) for i, image in part.items()}
        return [found[i] for i in sorted(found)]


def numbers_of(
    features: Features, reference: Features, metrics: Sequence[str], seconds_per_image: float | None
) -> Numbers:
    """The metrics, under the names that `eval calc` gives them, and the seconds."""
    found = {k: v for k, v in distances(features, reference, metrics).items() if k not in NOT_NUMBERS}
    return finite({**found, "seconds_per_image": seconds_per_image})


def finite(numbers: Mapping[str, float | None]) -> Numbers:
    """None for what JSON has no form for."""
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in numbers.items()}


def nearest_training(
    features: FeatureRows, training: Training, shown: Mapping[int, Tensor]
) -> tuple[float, list[float], Tensor | None]:
    """Median distance to the nearest training picture; those of the pictures shown, and the panel of them.

    Args:
        features: of the pictures asked about.
        training: where the nearest are sought.
        shown: some of the pictures, by row of the features: uint8 (3, H, W).

    Returns:
        The median over all rows; the distances of those shown; and a picture of shape (3, 2 side, len(shown) side)
        with each one above its nearest, None where none is shown.
    """
    indices, found = nearest(features.features, training.features.features)
    of_all: list[float] = found[:, 0].tolist()
    panel = None
    if shown:
        below = [training.pictures.read(int(indices[row, 0])) for row in shown]
        side = side_of([*shown.values(), *below])
        panel = torch.cat([side_by_side([*shown.values()], side), side_by_side(below, side)], 1)
    return statistics.median(of_all), [of_all[row] for row in shown], panel


def side_of(pictures: Sequence[Tensor]) -> int:
    """The side of squares that hold all of the pictures (3, h, w): the longest there is, at most `PICTURE_SIDE`."""
    return min(PICTURE_SIDE, max(max(p.shape[1:]) for p in pictures))


def side_by_side(pictures: Sequence[Tensor], side: int | None = None) -> Tensor:
    """uint8 pictures (3, h, w) as one of shape (3, side, n side); by default `side_of` them."""
    return torch.cat([in_square(p, side or side_of(pictures)) for p in pictures], 2)


def in_square(picture: Tensor, side: int) -> Tensor:
    """A uint8 picture (3, h, w) in the middle of a white square, made smaller where it is larger, never stretched.

    >>> in_square(torch.zeros(3, 2, 8, dtype=torch.uint8), 4)[0].tolist()
    [[255, 255, 255, 255], [0, 0, 0, 0], [255, 255, 255, 255], [255, 255, 255, 255]]
    """
    if (longest := max(picture.shape[1:])) > side:
        height, width = (max(1, round(n * side / longest)) for n in picture.shape[1:])
        picture = resize(picture[None], (height, width), "pil-bicubic")[0]
    height, width = picture.shape[1:]
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(picture, (left, side - width - left, top, side - height - top), value=255)


class Cells:
    """The cells of a folder, by what they were made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _stem(self, made_from: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]

    def picture(self, made_from: Mapping[str, Any], kind: str) -> Path:
        return self.folder / f"{self._stem(made_from)}-{kind}.png"

    def load(self, made_from: Mapping[str, Any], shown: bool) -> dict[str, Any] | None:
        """What `save` wrote, or None; `shown` asks for a cell that was made with pictures to show."""
        try:
            found = json.loads((self.folder / f"{self._stem(made_from)}.json").read_text(encoding="utf-8"))
            whole = (
                found["version"] == VERSION
                and found["made_from"] == json.loads(json.dumps(made_from))
                and all(v is None or math.isfinite(v) for v in found["numbers"].values())
                and found["facts"]["n_reference"] > 0
                and all(v is None or math.isfinite(v) for v in (found["facts"].get("unseen") or {}).values())
                and (found["nearest_distances"] is None or all(map(math.isfinite, found["nearest_distances"])))
                and (found["shown"] or not shown)
                and all(_sha256(self.picture(made_from, kind)) == sha for kind, sha in found["pictures"].items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return found if whole else None

    def save(self, made_from: Mapping[str, Any], cell: Cell, shown: bool) -> dict[str, Any]:
        """Write the pictures, then the JSON, each in one rename; returns what `load` will."""
        hashes = {}
        for kind, image in cell.pictures.items():
            path = self.picture(made_from, kind)
            write_atomic(path, _png(image))
            hashes[kind] = _sha256(path)
        record = {
            "version": VERSION,
            "made_from": dict(made_from),
            "numbers": cell.numbers,
            "facts": cell.facts,
            "nearest_distances": cell.nearest_distances,
            "shown": shown,
            "pictures": hashes,
        }
        write_json_atomic(self.folder / f"{self._stem(made_from)}.json", record)
        return record


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _png(image: Tensor) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(out, format="PNG")
    return out.getvalue()
