"""A teacher and its students on several encoders: distance to real images, and variety within a caption.

    OUT/compare.json    all numbers, rewritten after every cell
    OUT/index.html      tables, plots, and images of twelve captions, drawn eight times each
    OUT/cells/          one file a cell, named by a hash of all that determines it, and its images

Notable:
- a cell is one generator at one number of steps, one guidance scale and one seed. What is there is not made again;
- image i of seed s starts from noise of seed s * 1,000,000 + i; images that are drawn several times of one caption have
  another range of seeds. All generators get the same prompts and the same noise;
- each image is made once, however many encoders look at it;
- numbers are printed as ratios to the teacher's, at the same seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.comparison.compare_ground import CompareGround, Drawn
from diffdistill.comparison.generated import CHUNK, Generated
from diffdistill.errors import UserError
from diffdistill.evaluation.battery.encoders import Battery
from diffdistill.evaluation.battery.numbers import encoder_numbers, over_encoders, ratios
from diffdistill.evaluation.battery.page import html_page
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.measure import Pass, Reading, collect_several, from_all_processes
from diffdistill.evaluation.protocols import Protocol
from diffdistill.evaluation.reference import read_reference
from diffdistill.evaluation.sweep.cells import Watched
from diffdistill.files import write_atomic, write_json_atomic
from diffdistill.launched import is_first
from diffdistill.models.generate import Generator, check_steps, load_generator, network_of, sampler_settings

NOISE, REPEATED = 1_000_000, 500_000  # seeds of noise of one seed, and where those of repeated captions begin
PROTOCOL = Protocol(
    "battery", "several encoders", "each encoder's own", "given", crop="centre-square", mixed_sizes=True
)
SHOWN, TIMES = 12, 8  # captions and images of each that are shown
SIDE = 128  # largest side of a shown image, in pixels
FORMAT = 1
NUMBERS = {"kd", "kd_se", "fd", "n", "n_reference", "variety", "vendi"}
MOST_SEEDS = 2**32 // NOISE  # of noise, of which torch's generator on a CPU takes 32 bits


@dataclass(frozen=True)
class Compared:
    """One generator at one setting.

    Args:
        name: how rows call it.
        source: a pipeline folder or a hub id.
        steps: number of sampling steps.
        guidance: guidance scale; 1 is none.
    """

    name: str
    source: str
    steps: int = 1
    guidance: float = 1.0


@dataclass(frozen=True)
class ComparePlan:
    """What a comparison measures.

    Args:
        teacher: the generator that ratios are taken to.
        students: the others, each of another name.
        seeds: each draws its own prompts and noise.
        per_caption: number of images of each caption that is drawn several times.

    Raises:
        UserError: a value out of range, or a name that is given twice.
    """

    teacher: Compared
    students: Sequence[Compared]
    seeds: Sequence[int] = (0, 1, 2)
    per_caption: int = TIMES

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise UserError(f"two generators are called {next(n for n in names if names.count(n) > 1)!r}")
        if self.per_caption < 2:
            raise UserError(f"per_caption is {self.per_caption}; a distance within a caption needs at least 2 images")
        if not self.seeds or not all(0 <= seed < MOST_SEEDS for seed in self.seeds):
            raise UserError(f"seeds are {list(self.seeds)}; there must be one, and each from 0 to {MOST_SEEDS - 1}")

    @property
    def rows(self) -> list[Compared]:
        """All generators, the teacher first."""
        return [self.teacher, *self.students]


class Comparison:
    """One comparison. Everything is read and checked when it is built.

    Args:
        plan: what is measured.
        ground: prompts and real images.
        battery: names of encoders.
        encoders: the encoders, built, by name.
        out: folder of the results: a new one, or that of a comparison to go on with.
        reading: how images are read.

    Raises:
        UserError: whatever is wrong, before any image is made.
    """

    def __init__(
        self,
        plan: ComparePlan,
        ground: CompareGround,
        battery: Battery,
        encoders: Mapping[str, Extractor],
        out: Path,
        reading: Reading | None = None,
    ) -> None:
        if ground.images + ground.captions * plan.per_caption >= REPEATED:
            raise UserError(
                f"images is {ground.images}; with those of repeated captions there must be below {REPEATED}"
            )
        self.plan, self.ground, self.battery, self.encoders, self.out = plan, ground, battery, encoders, out
        self.reading = reading or Reading()
        sources = {source: load_generator(source) for source in dict.fromkeys(row.source for row in plan.rows)}
        digests = {source: model.digest() for source, model in sources.items()}
        self.models: dict[str, Generator] = {row.name: sources[row.source] for row in plan.rows}
        self._digests = {row.name: digests[row.source] for row in plan.rows}
        for row in plan.rows:
            check_steps(self.models[row.name], row.steps)
        self._reference: dict[str, Tensor] = {}
        self._of_reference = ground.reference.digest()

    def run(self) -> dict[str, Any]:
        """Measure what is missing; returns the record, which is also OUT/compare.json."""
        cells: dict[tuple[str, int], dict[str, Any]] = {}
        order = [(row, seed) for seed in self.plan.seeds for row in self.plan.rows]
        record: dict[str, Any] = {}
        for row, seed in order:
            drawn = self.ground.drawn(seed)
            made_from = self._made_from(row, seed, drawn)
            stored = self._load(made_from, seed == self.plan.seeds[0])
            if not all(from_all_processes(stored is not None)):
                for name in self.encoders:  # before any image is made
                    self._real(name)
                stored = self._measure(row, seed, drawn, made_from)
            if is_first():
                assert stored is not None
                cells[row.name, seed] = stored
                record = self._record(cells)
                self.out.mkdir(parents=True, exist_ok=True)
                write_json_atomic(self.out / "compare.json", record)
        if is_first():
            write_atomic(self.out / "index.html", html_page(record, self._sheets(cells)).encode())
        from_all_processes(True)  # no process leaves before everything is written
        return record

    # ---- one cell ---------------------------------------------------------------------------------------------

    def _made_from(self, row: Compared, seed: int, drawn: Drawn) -> dict[str, Any]:
        model = self.models[row.name]
        settings = json.dumps(sampler_settings(model), sort_keys=True, default=str)
        return {
            "format": FORMAT,
            "model": self._digests[row.name],
            "sampler": _digest(settings),
            "steps": row.steps,
            "guidance": row.guidance,
            "seed": seed,
            "prompts": _digest("\n".join(drawn.prompts)),
            "captions": _digest("\n".join(drawn.captions)),
            "per_caption": self.plan.per_caption,
            "reference": self._of_reference,
            "reference_rows": None if drawn.rows is None else _digest(str(drawn.rows)),
            "encoders": {name: PROTOCOL.record(encoder) for name, encoder in self.encoders.items()},
            "torch": ".".join(torch.__version__.split(".")[:2]),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "encoders_on": sorted({encoder.device.type for encoder in self.encoders.values()}),
        }

    def _files(self, made_from: Mapping[str, Any]) -> tuple[Path, Path]:
        stem = _digest(json.dumps(made_from, sort_keys=True))
        return self.out / "cells" / f"{stem}.json", self.out / "cells" / f"{stem}.png"

    def _load(self, made_from: Mapping[str, Any], with_image: bool) -> dict[str, Any] | None:
        """The cell's record, or None where it is not there, or is damaged, or lacks the images that are to be shown."""
        file, image = self._files(made_from)
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            whole = (
                found["made_from"] == json.loads(json.dumps(made_from))
                and set(found["numbers"]) == set(self.encoders)
                and all(set(each) == NUMBERS for each in found["numbers"].values())
                and all(math.isfinite(value) for each in found["numbers"].values() for value in each.values())
                and math.isfinite(found["seconds_per_image"])
                and math.isfinite(found["nfe"])
                and (not with_image or hashlib.sha256(image.read_bytes()).hexdigest() == found["image"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return found if whole else None

    def _measure(self, row: Compared, seed: int, drawn: Drawn, made_from: dict[str, Any]) -> dict[str, Any] | None:
        model, plan = self.models[row.name], self.plan
        repeated = [caption for caption in drawn.captions for _ in range(plan.per_caption)]
        shown = min(SHOWN * plan.per_caption, len(repeated)) if seed == plan.seeds[0] else 0
        passes = [Pass(encoder) for encoder in self.encoders.values()]
        features, sources = [], []
        cell = plan.seeds.index(seed) * len(plan.rows) + plan.rows.index(row) + 1
        for prompts, first, kept in ((drawn.prompts, 0, 0), (repeated, REPEATED, shown)):
            made = Generated(model, prompts, len(prompts), row.steps, row.guidance, seed * NOISE + first)
            made.name = f"cell {cell} of {len(plan.seeds) * len(plan.rows)}: {row.name}, seed {seed}"
            sources.append(Watched(made, kept, CHUNK, network_of(model)))
            features.append(collect_several(sources[-1], PROTOCOL, passes, len(prompts), self.reading))
        reference = {name: self._real(name) for name in self.encoders}
        facts = {"nfe": sources[0].nfe(), "seconds_per_image": sources[0].seconds_per_image()}
        pictures = sources[1].kept(False)
        if not is_first():
            return None
        numbers = {}
        for name, some, many in zip(self.encoders, *features, strict=True):
            real = reference[name] if drawn.rows is None else reference[name][drawn.rows]
            numbers[name] = encoder_numbers(_rows(some), real, _rows(many), repeated)
        record = {"made_from": made_from, "numbers": numbers, **facts, "threads": torch.get_num_threads()}
        file, image = self._files(made_from)
        file.parent.mkdir(parents=True, exist_ok=True)
        if pictures:
            sheet = _sheet(pictures, plan.per_caption)
            record["image"] = hashlib.sha256(sheet).hexdigest()
            write_atomic(image, sheet)
        write_json_atomic(file, record)
        return record

    def _real(self, name: str) -> Tensor:
        if name not in self._reference:
            found = read_reference(self.ground.reference, PROTOCOL, self.encoders[name], True, self.reading)
            self._reference[name] = _rows(found)
        return self._reference[name]

    # ---- the record -------------------------------------------------------------------------------------------

    def _record(self, cells: Mapping[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
        plan, battery = self.plan, self.battery
        rows = []
        for row in plan.rows:
            mine = {seed: cells[row.name, seed] for seed in plan.seeds if (row.name, seed) in cells}
            over = {
                seed: ratios(cell["numbers"], cells[plan.teacher.name, seed]["numbers"]) for seed, cell in mine.items()
            }
            kinds = {"all": battery.names, "tuning": battery.tuning, "judging": battery.judging}
            summary = {
                kind: _mean_and_spread([over_encoders(found, names) for found in over.values()])
                for kind, names in kinds.items()
                if names and over
            }
            encoders = {
                name: {
                    **_mean_and_spread([cell["numbers"][name] for cell in mine.values()]),
                    "ratios": _mean_and_spread([found[name] for found in over.values()]),
                }
                for name in self.encoders
                if mine
            }
            seconds = [cell["seconds_per_image"] for cell in mine.values() if cell["seconds_per_image"] is not None]
            rows.append(
                {
                    "name": row.name,
                    "source": row.source,
                    "digest": self._digests[row.name],
                    "steps": row.steps,
                    "guidance": row.guidance,
                    "nfe": next((cell["nfe"] for cell in mine.values()), None),
                    "seconds_per_image": statistics.median(seconds) if seconds else None,
                    "seeds": list(mine),
                    "summary": summary,
                    "encoders": encoders,
                }
            )
        ground = self.ground
        return {
            "format": FORMAT,
            "teacher": plan.teacher.name,
            "tuning": list(battery.tuning),
            "judging": list(battery.judging),
            "prompts_of": ground.name,
            "reference": ground.reference.name,
            "images": ground.images,
            "captions": ground.captions,
            "per_caption": plan.per_caption,
            "seeds": list(plan.seeds),
            "shown": ground.drawn(plan.seeds[0]).captions[:SHOWN],
            "protocols": {name: PROTOCOL.record(encoder) for name, encoder in self.encoders.items()},
            "rows": rows,
        }

    def _sheets(self, cells: Mapping[tuple[str, int], dict[str, Any]]) -> dict[str, bytes]:
        """The images of each generator at the first seed, as PNG: a caption a column."""
        seed, found = self.plan.seeds[0], {}
        for row in self.plan.rows:
            if (row.name, seed) in cells:
                found[row.name] = self._files(cells[row.name, seed]["made_from"])[1].read_bytes()
        return found


def _mean_and_spread(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each number as [mean, standard deviation over seeds], or [value, None] of one seed; None where one is missing."""
    summary: dict[str, Any] = {}
    for key in found[0]:
        values = [each[key] for each in found]
        if any(value is None for value in values):
            summary[key] = None
            continue
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[key] = [statistics.fmean(values), spread]
    return summary


def _sheet(pictures: Sequence[Tensor], per_caption: int) -> bytes:
    """Images as one PNG: column k has the images of caption k, one below the other."""
    from io import BytesIO

    from PIL import Image

    side = max(max(image.shape[-2:]) for image in pictures)
    if side > SIDE:
        scale = SIDE / side
        pictures = [
            F.interpolate(image[None].float(), scale_factor=scale, mode="bicubic", antialias=True)[0]
            .round()
            .clamp(0, 255)
            .byte()
            for image in pictures
        ]
    columns = [torch.cat(list(pictures[i : i + per_caption]), 1) for i in range(0, len(pictures), per_caption)]
    sheet = torch.cat([column for column in columns if column.shape == columns[0].shape], 2)
    out = BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().cpu().numpy()).save(out, format="PNG")
    return out.getvalue()


def _rows(features: Any) -> Tensor:
    found: Tensor = features.features
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
