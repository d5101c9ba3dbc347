"""One cell of a sweep: its numbers and images from one pass, and its file.

    OUT/cells/HASH.json           made_from: everything that determines the cell; numbers; nearest_distances; facts
    OUT/cells/HASH-strip.png      the first images side by side          both for the first seed only; their hashes
    OUT/cells/HASH-nearest.png    the same above their nearest images    are in the JSON, which is written last

Notable:
- the images of a panel are fitted to squares of one side, at most 128 pixels, so that a report can show any image;
- network passes are counted, not assumed. Seconds are the median over chunks, and carry what they were measured on;
- HASH is a hash of `made_from`, so an option that changes a number gives another cell;
- a file that is damaged, or whose images are damaged, counts as absent.
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
SAMPLES = 12  # images of a cell that are shown
NOT_NUMBERS = ("n", "n_reference", "reference", "protocol", "fd_mean_term")  # of what `distances` returns

Numbers = dict[str, float | None]


@dataclass
class Cell:
    """What was measured for one generator at one number of steps, one guidance scale and one seed.

    Attributes:
        numbers: by name; None where a number is not finite.
        facts: n_reference, the number of reference images that were read. For a generator also nfe, the network passes
            of an image, and timing, the threads and the device behind seconds_per_image. For the floor also unseen,
            the agreement of images of held-out concepts.
        nearest_distances: of the images shown, for the first seed.
        pictures: panels, uint8 (3, H, W), for the first seed: "strip" and "nearest".
    """

    numbers: Numbers
    facts: dict[str, Any] = field(default_factory=dict)
    nearest_distances: list[float] | None = None
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def take_nearest(self, median: float, shown: list[float], panel: Tensor | None) -> None:
        """Keep what `nearest_training` returns."""
        self.numbers["nearest_median"] = median
        if panel is not None:
            self.nearest_distances, self.pictures["nearest"] = shown, panel


class Watched(Source):
    """A generator's images, timed and counted as they are made; the first ones are kept.

    Args:
        source: a source that makes a batch at once.
        keep: images 0 .. keep - 1 are kept by the process that makes them.
        chunk: number of images that the generator makes at a time; those that fill up a chunk count as made.
        network: its passes are counted, by the rows of its first argument.
    """

    together = True

    def __init__(self, source: Source, keep: int, chunk: int, network: nn.Module) -> None:
        self._source, self._keep, self._chunk, self._network = source, keep, chunk, network
        self.name, self._kept = source.name, dict[int, Tensor]()
        self._seconds: list[float] = []  # one for each chunk
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
        """Seconds of generation alone: wall time of a process, the median over the chunks of all processes."""
        chunks = [seconds for part in from_all_processes(self._seconds) for seconds in part]
        return statistics.median(chunks) / self._chunk

    def nfe(self) -> int:
        """Network passes for an image; guidance's second pass counts."""
        everyone = from_all_processes((self._passes, len(self._seconds)))
        return round(sum(n for n, _ in everyone) / (self._chunk * sum(chunks for _, chunks in everyone)))

    def kept(self, truncate: bool) -> list[Tensor]:
        """The images kept by any process, in order, as uint8; on every process."""
        mine = {i: to_uint8(image, truncate) for i, image in self._kept.items()}
        found = {i: image for part in from_all_processes(mine) for i, image in part.items()}
        return [found[i] for i in sorted(found)]


def numbers_of(
    features: Features, reference: Features, metrics: Sequence[str], seconds_per_image: float | None
) -> Numbers:
    """The metrics, under the names that `eval calc` gives them, and the seconds for an image."""
    found = {k: v for k, v in distances(features, reference, metrics).items() if k not in NOT_NUMBERS}
    return finite({**found, "seconds_per_image": seconds_per_image})


def finite(numbers: Mapping[str, float | None]) -> Numbers:
    """The numbers, with None in place of those that are not finite, for which JSON has no form."""
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in numbers.items()}


def nearest_training(
    features: FeatureRows, training: Training, shown: Mapping[int, Tensor]
) -> tuple[float, list[float], Tensor | None]:
    """How far images are from the nearest training image, and a panel of some of them.

    Args:
        features: of the images.
        training: where the nearest are sought.
        shown: some of the images, by row of the features: uint8 (3, H, W).

    Returns:
        The median over all rows; the distances of those shown; and an image of shape (3, 2 side, len(shown) side)
        with each one above its nearest, None where none is shown.
    """
    indices, found = nearest(features.features, training.features.features)
    of_all: list[float] = found[:, 0].tolist()
    panel = None
    if shown:
        below = [training.images.read(int(indices[row, 0])) for row in shown]
        side = side_of([*shown.values(), *below])
        panel = torch.cat([side_by_side([*shown.values()], side), side_by_side(below, side)], 1)
    return statistics.median(of_all), [of_all[row] for row in shown], panel


def side_of(pictures: Sequence[Tensor]) -> int:
    """The side of squares that hold all of the images (3, h, w): the longest side, at most `PICTURE_SIDE`."""
    return min(PICTURE_SIDE, max(max(p.shape[1:]) for p in pictures))


def side_by_side(pictures: Sequence[Tensor], side: int | None = None) -> Tensor:
    """uint8 images (3, h, w) side by side, as one of shape (3, side, n side); `side` is `side_of` them by default."""
    return torch.cat([in_square(p, side or side_of(pictures)) for p in pictures], 2)


def in_square(picture: Tensor, side: int) -> Tensor:
    """A uint8 image (3, h, w) in the middle of a white square, made smaller where it is larger, never stretched.

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
    """The cells in a folder, found by what they were made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _stem(self, made_from: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]

    def picture(self, made_from: Mapping[str, Any], kind: str) -> Path:
        """The file of a cell's panel; kind is "strip" or "nearest"."""
        return self.folder / f"{self._stem(made_from)}-{kind}.png"

    def load(self, made_from: Mapping[str, Any], shown: bool) -> dict[str, Any] | None:
        """The record that `save` wrote, or None. `shown` asks for a cell that was made with images to show."""
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
        """Write the panels and then the JSON, each in one rename; returns the record, as `load` will."""
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
