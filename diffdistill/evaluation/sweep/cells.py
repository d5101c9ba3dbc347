"""One cell of a sweep: what determines it, its numbers and pictures from one pass, and its file.

    OUT/cells/HASH.json           made_from: all that determines it; numbers; nearest_distances
    OUT/cells/HASH-strip.png      the first pictures side by side        both for the first seed only; their
    OUT/cells/HASH-nearest.png    the same over their nearest training   hashes are in the JSON, which is written last

Notable:
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
from torch import Tensor

from diffdistill.evaluation.agreement import Towers, agreement, report
from diffdistill.evaluation.extractors import to_uint8
from diffdistill.evaluation.measure import Features, distances, everyones
from diffdistill.evaluation.neighbours import nearest
from diffdistill.evaluation.reading import Source
from diffdistill.evaluation.report import write_atomic, write_json_atomic
from diffdistill.evaluation.resize import resize
from diffdistill.evaluation.states import FeatureRows
from diffdistill.evaluation.sweep.ground import Training

VERSION = 1
SAMPLES = 12  # pictures shown of a cell
NOT_NUMBERS = ("n", "n_reference", "reference", "protocol", "fd_mean_term")  # of what `distances` returns

Numbers = dict[str, float | None]


@dataclass
class Cell:
    """Numbers by name, None where not finite; of the first seed also distances and pictures, uint8 (3, H, W)."""

    numbers: Numbers
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
    """

    together = True

    def __init__(self, source: Source, keep: int, chunk: int) -> None:
        self._source, self._keep, self._chunk = source, keep, chunk
        self.name, self._kept = source.name, dict[int, Tensor]()
        self._seconds, self._made = 0.0, 0

    def __len__(self) -> int:
        return len(self._source)

    def label(self, index: int) -> str:
        return self._source.label(index)

    def read_bytes(self, index: int) -> bytes:
        return self._source.read_bytes(index)

    def read_many(self, indices: Sequence[int]) -> list[Tensor]:
        started = time.perf_counter()
        made = self._source.read_many(indices)
        self._seconds += time.perf_counter() - started
        self._made += -(-len(indices) // self._chunk) * self._chunk
        self._kept.update((i, image) for i, image in zip(indices, made, strict=True) if i < self._keep)
        return made

    def seconds_per_image(self) -> float:
        """Of generation alone, wall time of one process, the mean over all of them."""
        everyone = everyones((self._seconds, self._made))
        return sum(seconds for seconds, _ in everyone) / max(1, sum(made for _, made in everyone))

    def kept(self, truncate: bool) -> list[Tensor]:
        """On every process, the pictures kept by any, in order, as bytes."""
        mine = {i: to_uint8(image, truncate) for i, image in self._kept.items()}
        found = {i: image for part in everyones(mine) for i, image in part.items()}
        return [found[i] for i in sorted(found)]


def numbers_of(
    features: Features, reference: Features, metrics: Sequence[str], seconds_per_image: float | None
) -> Numbers:
    """The metrics, under the names that `eval calc` gives them, and the seconds."""
    found = {k: v for k, v in distances(features, reference, metrics).items() if k not in NOT_NUMBERS}
    return finite({**found, "seconds_per_image": seconds_per_image})


def agreement_numbers(towers: Towers, pictures: FeatureRows, texts: Tensor, captions: Sequence[str]) -> Numbers:
    """Agreement as KIND_score, KIND_score_se, KIND_r1, KIND_r5: the sweep says once which towers they are of."""
    found = report(towers, agreement(pictures.features, texts, captions))
    names = {f"{towers.kind}_{name}" for name in ("score", "score_se", "r1", "r5")}
    short = {name.removesuffix(towers.key): value for name, value in found.items()}
    return finite({name: value for name, value in short.items() if name in names})


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
        The median over all rows; the distances of those shown; and a picture (3, 2 H, len(shown) W) with each one
        above its nearest, None where none is shown.
    """
    indices, found = nearest(features.features, training.features.features)
    of_all: list[float] = found[:, 0].tolist()
    panel = None
    if shown:
        below = [training.pictures.read(int(indices[row, 0])) for row in shown]
        panel = torch.cat([side_by_side([*shown.values()]), side_by_side(below, next(iter(shown.values())))], 1)
    return statistics.median(of_all), [of_all[row] for row in shown], panel


def side_by_side(pictures: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
    """uint8 pictures (3, h, w) as one of shape (3, H, n W), H and W those of `like`, else of the first picture."""
    size = (pictures[0] if like is None else like).shape[1:]
    fitted = [p if p.shape[1:] == size else resize(p[None], (size[0], size[1]), "pil-bicubic")[0] for p in pictures]
    return torch.cat(fitted, 2)


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
