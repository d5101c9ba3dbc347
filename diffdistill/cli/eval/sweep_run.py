"""How `eval sweep` goes through its cells: what they share, what determines each, and what is written when.

    OUT/sweep.json    the whole table, rewritten after every cell; a report can be drawn from it at any time
    OUT/cells/        one file a cell, named by a hash of all that determines it
    OUT/strips/       of every row, the same 12 prompts from the same noise
    OUT/nearest/      the same pictures, each above its nearest training picture

Notable:
- a cell is one generator at one number of steps, one guidance and one seed: its pictures are made once, and the
  protocol's features and the towers' embeddings taken as they come;
- picture i of seed s starts from noise of seed s * 1,000,000 + i, so seeds share no noise (`eval calc --seed` takes
  that number), and neither batches nor processes matter;
- seconds_per_image is of generation alone, wall time of one process, and measures the machine's load with it: it is
  reported with the threads and the device it was measured on, and nothing is ranked by it;
- agreement by towers whose heads were trained on the prompts is measured of held-out concepts' pictures too;
- all pipelines are kept in memory from the start, so that a wrong one is refused before the first picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffdistill.cli.eval.agreement import agreement_numbers, texts_of, towers_of
from diffdistill.cli.eval.options import device_of, is_first, left_out_of, prompt_records, protocol_of, reading_of
from diffdistill.cli.paths import find
from diffdistill.comparison.generated import CHUNK, Generated
from diffdistill.errors import UserError
from diffdistill.evaluation.distances.states import FeatureRows
from diffdistill.evaluation.measure import ROWS, Features, Pass, check_metrics, collect_several, everyones
from diffdistill.evaluation.page.record import MAX_TEXT
from diffdistill.evaluation.sweep.cells import (
    SAMPLES,
    Cell,
    Cells,
    Numbers,
    Watched,
    finite,
    nearest_training,
    numbers_of,
    side_by_side,
)
from diffdistill.evaluation.sweep.ground import EmojiGround, GivenGround, Ground, Stack, Unseen
from diffdistill.evaluation.sweep.table import REAL, Row, in_order, rows_of, table
from diffdistill.files import write_atomic, write_json_atomic
from diffdistill.models.generate import Generator, check_eta, check_steps, generate, load_generator, sampler_settings

PICTURES = 512  # a cell, where neither the option nor the protocol names a number
NOISE = 1_000_000  # seeds of noise that one seed of the sweep has for itself


class Sweep:
    """All that the cells share, read and checked before the first of them.

    Args:
        o: options, checked as far as they can be alone.
        named: by name of the generator, its path and "model" or "student".

    Raises:
        UserError: whatever is wrong, before any picture is made.
    """

    def __init__(self, o: argparse.Namespace, named: Mapping[str, tuple[str, str]]) -> None:
        self.out: Path = o.out
        self.protocol, self.extractor = protocol_of(o)
        self.pictures: int = o.pictures or self.protocol.n_generated or PICTURES
        if self.pictures > NOISE:
            raise UserError(f"--pictures is {self.pictures}; the noise of seeds would overlap above {NOISE}")
        check_metrics(o.metrics, self.pictures, self.extractor.name)
        self.metrics: list[str] = list(dict.fromkeys(o.metrics))
        self.ground = _ground(o, self.extractor.name, self.pictures)
        self.seeds: list[int] = o.seeds
        self.eta: float | None = o.eta
        self.samples = self._captions(self.seeds[0], min(SAMPLES, self.pictures))
        for caption in self.samples:
            if len(caption) > MAX_TEXT:
                raise UserError(f"a prompt has {len(caption)} characters; a report shows at most {MAX_TEXT}")
        self.towers = None if o.agreement == "none" else towers_of(o, self.protocol)
        self.models = _load(o, named)
        self.needs_rows = any(name in ROWS for name in self.metrics)
        self.reading = reading_of(o)
        self.cells = Cells(self.out / "cells")
        self.floor = self.ground.real_identity is not None
        kinds = {kind: [name for name, (_, k) in named.items() if k == kind] for kind in ("model", "student")}
        self.rows = rows_of(kinds["model"], kinds["student"], o.step_counts, o.scales)
        self.order = in_order([*self.rows, *([REAL] if self.floor else [])], self.seeds)
        self.with_towers = min(o.agreement_pictures, self.pictures) if self.towers is not None else 0
        self.generators = [
            {"name": name, "model": path, "digest": self.models[name].digest(), "kind": kind}
            for name, (path, kind) in named.items()
        ]
        self._digests = {entry["name"]: entry["digest"] for entry in self.generators}
        self._source: str = o.reference
        self._texts: dict[int, Tensor] = {}
        self._unseen: dict[str, Any] | None = None
        on = "cuda" if torch.cuda.is_available() else "cpu"  # as `generate` chooses
        self._timing = {"threads": torch.get_num_threads(), "device": on}
        if on == "cuda":
            self._timing["device"] = torch.cuda.get_device_name()
        version = ".".join(torch.__version__.split(".")[:2])
        self._made_on = {"generators": on, "features": device_of(o).partition(":")[0], "torch": version}
        self._truncate = self.protocol.quantisation == "uint8-truncate"

    def run(self) -> int:
        """Make the cells that are not there; returns how many.

        Raises:
            UserError: a reference that does not fit.
        """
        found: dict[tuple[Row, int], Any] = {}
        if is_first():
            stored = {
                (row, seed): self.cells.load(self._made_from(row, seed), self._shown(seed)) for row, seed in self.order
            }
            found = {cell: record for cell, record in stored.items() if record is not None}
        there = everyones(set(found))[0]  # as the first process saw it
        todo = [cell for cell in self.order if cell not in there]
        if todo:
            self.ground.measure(self.protocol, self.extractor, self.needs_rows, self.reading)
        if is_first():
            self.cells.folder.mkdir(parents=True, exist_ok=True)
            for row, seed in found:
                self._publish(row, seed, found[row, seed])
            self._write(found)
        self._warm({row.generator for row, _ in todo})
        form = "{desc} |{bar:20}| {elapsed}, {remaining} left"
        costs = [row.cost + 1 for row, _ in todo]  # one more for what every picture costs
        with tqdm(total=sum(costs), bar_format=form, disable=not is_first() or not todo) as bar:
            for i, ((row, seed), cost) in enumerate(zip(todo, costs, strict=True)):
                bar.set_description_str(f"cell {i + 1} of {len(todo)}: {row.name}, seed {seed}")
                cell = self._measure(row, seed)
                if is_first():
                    found[row, seed] = self.cells.save(self._made_from(row, seed), cell, self._shown(seed))
                    self._publish(row, seed, found[row, seed])
                    self._write(found)
                bar.update(cost)
        everyones(True)  # none leaves before all is written
        return len(todo)

    def _shown(self, seed: int) -> bool:
        return seed == self.seeds[0]

    def _captions(self, seed: int, n: int) -> list[str]:
        prompts = self.ground.prompts(seed)
        return [prompts[i % len(prompts)] for i in range(n)]

    def _made_from(self, row: Row, seed: int) -> dict[str, Any]:
        """All that the numbers of a cell depend on."""
        what: dict[str, Any] = {"real": self.ground.real_identity}
        if row != REAL:
            model = self.models[row.generator]
            sampler = _digest(json.dumps(sampler_settings(model, self.eta), sort_keys=True, default=str))
            how = {"steps": row.steps, "guidance": row.guidance, "noise": seed * NOISE}
            what = {"model": self._digests[row.generator], "sampler": sampler, **how}
        towers = None if self.towers is None else {**self.towers.protocol, "key": self.towers.key}
        return {
            **what,
            "seed": seed,
            "pictures": self.pictures,
            "prompts": _digest("\n".join(self._captions(seed, self.pictures))),
            "reference": self.ground.identity,
            "protocol": self.protocol.record(self.extractor),
            "metrics": sorted(self.metrics),
            "agreement": towers,
            "agreement_pictures": self.with_towers,
            "made_on": self._made_on,
        }

    def _warm(self, names: set[str]) -> None:
        """One step of each, so that the first cell's seconds are not those of moving and compiling."""
        for name in sorted(names & set(self.models)):
            list(generate(self.models[name], self.samples[:1] * CHUNK, 1, 1.0, batch_size=CHUNK))

    def _measure(self, row: Row, seed: int) -> Cell:
        """By all processes together; only the first has the numbers."""
        if row == REAL:
            return self._measure_floor(seed)
        prompts = self.ground.prompts(seed)
        sampler = (self.pictures, row.steps, row.guidance, seed * NOISE, self.eta)
        model = self.models[row.generator]
        made = Generated(model, prompts, *sampler)
        source = Watched(made, SAMPLES if self._shown(seed) else 0, CHUNK, model.pipeline.unet)
        training = self.ground.training
        passes = [Pass(self.extractor, self.needs_rows or training is not None)]
        if self.towers is not None:
            passes.append(Pass(self.towers, first=self.with_towers))
        quiet = dataclasses.replace(self.reading, progress=False)
        features, *embedded = collect_several(source, self.protocol, passes, self.pictures, quiet)
        seconds, nfe, shown = source.seconds_per_image(), source.nfe(), source.kept(self._truncate)
        if not is_first():
            return Cell({})
        reference = self.ground.reference(seed)
        facts = {"n_reference": reference.n, "nfe": nfe, "timing": self._timing}
        cell = Cell(numbers_of(features, reference, self.metrics, seconds), facts)
        for rows in embedded:
            cell.numbers.update(self._agreement(rows, seed))
        if shown:
            cell.pictures["strip"] = side_by_side(shown)
        if training is not None:
            cell.take_nearest(*nearest_training(_rows(features), training, dict(enumerate(shown))))
        return cell

    def _measure_floor(self, seed: int) -> Cell:
        """Real pictures in the generator's place; nearest training pictures are sought for those of no training set."""
        real = self.ground.real(seed)
        assert real is not None, "without real pictures there is no such cell"
        quiet = dataclasses.replace(self.reading, progress=False)
        embedded = None
        if self.towers is not None and real.captioned is not None:
            (embedded,) = collect_several(real.captioned, self.protocol, [Pass(self.towers)], self.with_towers, quiet)
        if self._unseen is None and real.unseen is not None:  # once, since they are the same for every seed
            self._unseen = self._agreement_unseen(real.unseen)
        if not is_first():
            return Cell({})
        reference = self.ground.reference(seed)
        facts = {"n_reference": reference.n, "unseen": self._unseen or None}
        cell = Cell(numbers_of(real.features, reference, self.metrics, None), facts)
        if embedded is not None:
            cell.numbers.update(self._agreement(embedded, seed))
        if self._shown(seed) and real.captioned is not None:
            cell.pictures["strip"] = side_by_side([real.captioned.read(i) for i in range(len(self.samples))])
        if self.ground.training is not None and real.unseen is not None:
            features, pictures, _ = real.unseen
            spread = {}
            if pictures is not None and self._shown(seed):
                n = min(SAMPLES, features.n)
                spread = {row: pictures.read(row) for row in (i * features.n // n for i in range(n))}
            cell.take_nearest(*nearest_training(features, self.ground.training, spread))
        return cell

    def _agreement(self, embedded: Features, seed: int) -> Numbers:
        assert self.towers is not None
        captions = self._captions(seed, self.with_towers)
        if seed not in self._texts:  # one seed's at a time
            self._texts = {seed: texts_of(self.towers, captions)}
        return self._short(agreement_numbers(self.towers, _rows(embedded), captions, self._texts[seed]))

    def _agreement_unseen(self, unseen: Unseen) -> dict[str, Any]:
        """Of as many pictures of held-out concepts as a cell has, or all; for towers whose heads saw all the others.

        R@1 compares at an equal number. They are drawn, always the same, since neighbours in the set are often alike.
        """
        pictures, known = unseen.pictures, unseen.captions
        if self.towers is None or self.towers.kind != "align" or pictures is None or known is None:
            return {}
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        chosen = order[: self.with_towers].tolist()
        captions = [known[i] for i in chosen]
        some = Stack(torch.stack([pictures.read(i) for i in chosen]), captions, pictures.name)
        quiet = dataclasses.replace(self.reading, progress=False)
        (embedded,) = collect_several(some, self.protocol, [Pass(self.towers)], len(some), quiet)
        if not is_first():
            return {}
        return {**self._short(agreement_numbers(self.towers, _rows(embedded), captions)), "n": len(some)}

    def _short(self, found: Mapping[str, Any]) -> Numbers:
        """As KIND_score, KIND_score_se, KIND_r1, KIND_r5, KIND_captions: sweep.json says once of which towers."""
        assert self.towers is not None
        kind, key = self.towers.kind, self.towers.key
        named = {name: f"{kind}_{name}{key}" for name in ("score", "score_se", "r1", "r5")}
        numbers = {f"{kind}_{name}": found[long] for name, long in named.items()}
        return finite({**numbers, f"{kind}_captions": found[f"{kind}_captions"]})

    def _left_out(self, n: int) -> dict[str, Any]:
        """What was left out of a reference of n pictures, where something was."""
        source = self.ground.reference_source
        found = {} if source is None else left_out_of(source, len(source) - n)
        return {"left_out": found} if found else {}

    def _publish(self, row: Row, seed: int, record: dict[str, Any]) -> None:
        """The first seed's pictures, under the names that people and reports look for."""
        for kind, place in (("strip", "strips"), ("nearest", "nearest")):
            if self._shown(seed) and kind in record["pictures"]:
                data = self.cells.picture(self._made_from(row, seed), kind).read_bytes()
                write_atomic(self.out / place / f"{row.name}.png", data)

    def _write(self, found: dict[tuple[Row, int], Any]) -> None:
        towers = self.towers
        named = None if towers is None else {"kind": towers.kind, "key": towers.key, **towers.protocol}
        facts = [cell["facts"] for cell in found.values()]
        timings = [fact["timing"] for fact in facts if "timing" in fact]
        n = facts[0]["n_reference"] if facts else self.ground.reference(self.seeds[0]).n
        head = {
            "protocol": self.protocol.record(self.extractor),
            "agreement": named,
            "agreement_metric": None if towers is None else f"{towers.kind}_score",
            "prompts_of": self.ground.prompts_of,
            "nearest_of": self.ground.nearest_of,
            "reference": {"source": self._source, "n": n, **self._left_out(n)},
            "timing": {"pictures_at_a_time": CHUNK, "on": [t for i, t in enumerate(timings) if t not in timings[:i]]},
            "pictures": self.pictures,
            "agreement_pictures": self.with_towers,
            "seeds": self.seeds,
            "metrics": self.metrics,
            **({} if self.eta is None else {"eta": self.eta}),
            "generators": self.generators,
        }
        write_json_atomic(self.out / "sweep.json", table(head, self.rows, self.seeds, self.floor, found, self.samples))


def _load(o: argparse.Namespace, named: Mapping[str, tuple[str, str]]) -> dict[str, Generator]:
    """Pipelines by name.

    Raises:
        UserError: no such pipeline, or one whose scheduler cannot take one of --steps.
    """
    found = {}
    for name, (path, _) in named.items():
        found[name] = load_generator(find(path))
        try:
            for steps in o.step_counts:  # a scheduler may take 4 and 50 and not 1
                check_steps(found[name], steps)
            check_eta(found[name], o.eta)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return found


def _ground(o: argparse.Namespace, extractor: str, pictures: int) -> Ground:
    reference = find(o.reference)
    if o.prompts is None:
        return EmojiGround(reference, pictures, o.metrics, extractor)
    prompts = [record["prompt"] for record in prompt_records(o)]
    real = None if o.real is None else find(o.real)
    return GivenGround(prompts, pictures, reference, real, o.metrics, extractor, o.on_corrupt)


def _rows(features: Features) -> FeatureRows:
    assert isinstance(features, FeatureRows)
    return features


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
