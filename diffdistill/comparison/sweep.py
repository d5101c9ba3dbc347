"""A sweep: several generators over steps, guidance and seeds, measured cell by cell and resumable.

    OUT/sweep.json    the whole table, rewritten after every cell; a report can be drawn from it at any time
    OUT/cells/        one file a cell, named by a hash of all that determines it
    OUT/strips/       for every row, images of the same 12 prompts from the same noise
    OUT/nearest/      the same images, each above its nearest training image

Notable:
- a cell is one generator at one number of steps, one guidance scale and one seed;
- image i of seed s starts from noise of seed s * 1,000,000 + i, so seeds share no noise (`eval calc --seed` takes that
  number), and neither batches nor processes matter;
- seconds_per_image is the wall time of generation alone in one process, and depends on the machine's load: it is
  reported with the threads and the device it was measured on, and no row is ranked by it;
- all generators are loaded at the start, so that a wrong one is refused before the first image is made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffdistill.comparison.cell_measurement import CellMeasurement, warm_up
from diffdistill.comparison.generated import CHUNK
from diffdistill.comparison.sweep_plan import NOISE, SweepPlan, SweepProtocol
from diffdistill.errors import UserError
from diffdistill.evaluation.measure import from_all_processes, left_out_of
from diffdistill.evaluation.page.record import MAX_TEXT
from diffdistill.evaluation.sweep.cells import SAMPLES, Cells
from diffdistill.evaluation.sweep.ground import Ground
from diffdistill.evaluation.sweep.table import REAL, Row, in_order, rows_of, table
from diffdistill.files import write_atomic, write_json_atomic
from diffdistill.launched import is_first
from diffdistill.models.generate import Generator, check_eta, check_steps, load_generator, sampler_settings


class Sweep:
    """One sweep over generators, steps, guidance scales and seeds. Everything is read and checked when it is built.

    Args:
        plan: what is measured.
        how: protocol, extractor, towers and reading.
        ground: prompts and reference of every seed.
        out: folder of the results: a new one, or that of a sweep to go on with.

    Attributes:
        order: all cells, as (row, seed), in the order in which they are made.

    Raises:
        UserError: whatever is wrong, before any image is made.
    """

    def __init__(self, plan: SweepPlan, how: SweepProtocol, ground: Ground, out: Path) -> None:
        how.check(plan)
        self.plan, self.how, self.ground, self.out = plan, how, ground, out
        self.samples = self.ground.captions(plan.seeds[0], min(SAMPLES, plan.images))
        for caption in self.samples:
            if len(caption) > MAX_TEXT:
                raise UserError(f"a prompt has {len(caption)} characters; a report shows at most {MAX_TEXT}")
        on = "cuda" if torch.cuda.is_available() else "cpu"  # as `generate` chooses
        device = torch.cuda.get_device_name() if on == "cuda" else on
        timing = {"threads": torch.get_num_threads(), "device": device}
        self.models = _loaded(plan)
        self.measurement = CellMeasurement(plan, how, ground, self.models, timing)
        self.cells = Cells(out / "cells")
        self.floor = ground.real_identity is not None
        self.rows = rows_of(plan.names("model"), plan.names("student"), plan.steps, plan.guidance)
        self.order = in_order([*self.rows, *([REAL] if self.floor else [])], plan.seeds)
        self.generators = [
            {"name": g.name, "model": g.written or g.source, "digest": self.models[g.name].digest(), "kind": g.kind}
            for g in plan.generators
        ]
        self._digests = {entry["name"]: entry["digest"] for entry in self.generators}
        version = ".".join(torch.__version__.split(".")[:2])
        self._made_on = {"generators": on, "features": how.extractor.device.type, "torch": version}

    def run(self) -> int:
        """Make the cells that are not there yet; returns how many were made.

        Raises:
            UserError: a reference that does not fit.
        """
        found: dict[tuple[Row, int], Any] = {}
        shown = self.measurement.shown
        if is_first():
            stored = {(row, seed): self.cells.load(self._made_from(row, seed), shown(seed)) for row, seed in self.order}
            found = {cell: record for cell, record in stored.items() if record is not None}
        there = from_all_processes(set(found))[0]  # as the first process saw it
        todo = [cell for cell in self.order if cell not in there]
        if todo:
            how = self.how
            self.ground.measure(how.protocol, how.extractor, self.measurement.needs_rows, how.reading)
        if is_first():
            self.cells.folder.mkdir(parents=True, exist_ok=True)
            for row, seed in found:
                self._publish(row, seed, found[row, seed])
            self._write(found)
        names = sorted({row.generator for row, _ in todo} & set(self.models))
        warm_up([self.models[name] for name in names], self.samples[0])
        form = "{desc} |{bar:20}| {elapsed}, {remaining} left"
        costs = [row.cost + 1 for row, _ in todo]  # one more for what every image costs
        with tqdm(total=sum(costs), bar_format=form, disable=not is_first() or not todo) as bar:
            for i, ((row, seed), cost) in enumerate(zip(todo, costs, strict=True)):
                bar.set_description_str(f"cell {i + 1} of {len(todo)}: {row.name}, seed {seed}")
                cell = self.measurement.cell(row, seed)
                if is_first():
                    found[row, seed] = self.cells.save(self._made_from(row, seed), cell, shown(seed))
                    self._publish(row, seed, found[row, seed])
                    self._write(found)
                bar.update(cost)
        from_all_processes(True)  # no process leaves before everything is written
        return len(todo)

    def _made_from(self, row: Row, seed: int) -> dict[str, Any]:
        """Everything that the numbers of a cell depend on."""
        plan, how = self.plan, self.how
        what: dict[str, Any] = {"real": self.ground.real_identity}
        if row != REAL:
            settings = sampler_settings(self.models[row.generator], plan.eta)
            sampler = _digest(json.dumps(settings, sort_keys=True, default=str))
            sampled = {"steps": row.steps, "guidance": row.guidance, "noise": seed * NOISE}
            what = {"model": self._digests[row.generator], "sampler": sampler, **sampled}
        towers = None if how.towers is None else {**how.towers.protocol, "key": how.towers.key}
        return {
            **what,
            "seed": seed,
            "pictures": plan.images,
            "prompts": _digest("\n".join(self.ground.captions(seed, plan.images))),
            "reference": self.ground.identity,
            "protocol": how.protocol.record(how.extractor),
            "metrics": sorted(plan.metrics),
            "variety": [plan.variety_captions, plan.per_caption],
            "agreement": towers,
            "agreement_pictures": self.measurement.with_towers,
            "made_on": self._made_on,
        }

    def _publish(self, row: Row, seed: int, record: dict[str, Any]) -> None:
        """The first seed's images, under the names that people and reports look for."""
        for kind, place in (("strip", "strips"), ("nearest", "nearest")):
            if self.measurement.shown(seed) and kind in record["pictures"]:
                data = self.cells.picture(self._made_from(row, seed), kind).read_bytes()
                write_atomic(self.out / place / f"{row.name}.png", data)

    def _write(self, found: dict[tuple[Row, int], Any]) -> None:
        plan, how, towers = self.plan, self.how, self.how.towers
        named = None if towers is None else {"kind": towers.kind, "key": towers.key, **towers.protocol}
        facts = [cell["facts"] for cell in found.values()]
        timings = [fact["timing"] for fact in facts if "timing" in fact]
        n = facts[0]["n_reference"] if facts else self.ground.reference(plan.seeds[0]).n
        head = {
            "protocol": how.protocol.record(how.extractor),
            "agreement": named,
            "agreement_metric": None if towers is None else f"{towers.kind}_score",
            "prompts_of": self.ground.prompts_of,
            "nearest_of": self.ground.nearest_of,
            "reference": {"source": self.ground.name, "n": n, **self._left_out(n)},
            "timing": {"pictures_at_a_time": CHUNK, "on": [t for i, t in enumerate(timings) if t not in timings[:i]]},
            "pictures": plan.images,
            "agreement_pictures": self.measurement.with_towers,
            "seeds": plan.seeds,
            "metrics": plan.metrics,
            "variety": {"captions": plan.variety_captions, "per_caption": plan.per_caption},
            **({} if plan.eta is None else {"eta": plan.eta}),
            "generators": self.generators,
        }
        record = table(head, self.rows, plan.seeds, self.floor, found, self.samples)
        write_json_atomic(self.out / "sweep.json", record)

    def _left_out(self, n: int) -> dict[str, Any]:
        """What was left out of a reference of n images, where something was."""
        source = self.ground.reference_source
        found = {} if source is None else left_out_of(source, len(source) - n)
        return {"left_out": found} if found else {}


def _loaded(plan: SweepPlan) -> dict[str, Generator]:
    """The generators by name.

    Raises:
        UserError: no such pipeline, or one whose scheduler cannot take one of the numbers of steps or eta.
    """
    found = {}
    for generator in plan.generators:
        found[generator.name] = load_generator(generator.source)
        try:
            for steps in plan.steps:  # a scheduler may take 4 and 50 and not 1
                check_steps(found[generator.name], steps)
            check_eta(found[generator.name], plan.eta)
        except UserError as error:
            raise UserError(f"{generator.written or generator.source}: {error}") from None
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
