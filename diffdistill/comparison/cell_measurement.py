"""How one cell of a sweep is measured: the images of a generator, or real ones in a generator's place.

    prompts, noise -> generator -> extractor and towers, one pass -> distances, agreement, nearest training images

Notable:
- images are generated once, and the protocol's features and the towers' embeddings are taken as they come;
- all processes measure a cell together, and only the first has its numbers;
- where the towers' heads were trained on the prompts, agreement is measured on images of held-out concepts too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.comparison.generated import CHUNK, Generated
from diffdistill.comparison.sweep_plan import NOISE, SweepPlan, SweepProtocol
from diffdistill.data.in_memory import InMemory
from diffdistill.evaluation import diversity
from diffdistill.evaluation.agreement.towers import agreement_numbers, texts_of
from diffdistill.evaluation.distances.vendi import vendi_within
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.measure import Features, Pass, collect_several
from diffdistill.evaluation.metrics import ROWS
from diffdistill.evaluation.sweep.cells import (
    SAMPLES,
    Cell,
    Numbers,
    Watched,
    finite,
    nearest_training,
    numbers_of,
    side_by_side,
)
from diffdistill.evaluation.sweep.ground import Ground, Unseen
from diffdistill.evaluation.sweep.table import REAL, Row
from diffdistill.launched import is_first
from diffdistill.models.generate import Generator, generate, network_of


class CellMeasurement:
    """Measures the cells of one sweep.

    Args:
        plan: what is measured.
        how: protocol, extractor, towers and reading.
        ground: prompts and reference of every seed; its `measure` has to be called before a cell is measured.
        models: the loaded generators by name.
        timing: on what the seconds of generation are measured: the number of threads and the device.
    """

    def __init__(
        self,
        plan: SweepPlan,
        how: SweepProtocol,
        ground: Ground,
        models: Mapping[str, Generator],
        timing: Mapping[str, Any],
    ) -> None:
        self.plan, self.how, self.ground, self.models, self.timing = plan, how, ground, models, timing
        self.needs_rows = any(name in ROWS for name in plan.metrics)
        self.with_towers = min(plan.agreement_images, plan.images) if how.towers is not None else 0
        self.quiet = dataclasses.replace(how.reading, progress=False)
        self._texts: dict[int, Tensor] = {}
        self._unseen: dict[str, Any] | None = None
        self._truncate = how.protocol.quantisation == "uint8-truncate"

    def shown(self, seed: int) -> bool:
        """Whether a seed's images are kept to be shown: the first seed's are."""
        return seed == self.plan.seeds[0]

    def cell(self, row: Row, seed: int) -> Cell:
        """The numbers of one row at one seed, measured by all processes together; empty on all but the first."""
        return self._floor(seed) if row == REAL else self._generator(row, seed)

    def _generator(self, row: Row, seed: int) -> Cell:
        plan, protocol, training = self.plan, self.how.protocol, self.ground.training
        model = self.models[row.generator]
        sampler = (plan.images, row.steps, row.guidance, seed * NOISE, plan.eta)
        made = Generated(model, self.ground.prompts(seed), *sampler)
        source = Watched(made, SAMPLES if self.shown(seed) else 0, CHUNK, network_of(model))
        passes = [Pass(self.how.extractor, self.needs_rows or training is not None)]
        if self.how.towers is not None:
            passes.append(Pass(self.how.towers, first=self.with_towers))
        features, *embedded = collect_several(source, protocol, passes, plan.images, self.quiet)
        variety = self._variety(model, row, seed)
        seconds, nfe, shown = source.seconds_per_image(), source.nfe(), source.kept(self._truncate)
        if not is_first():
            return Cell({})
        reference = self.ground.reference(seed)
        facts = {"n_reference": reference.n, "nfe": nfe, "timing": self.timing}
        cell = Cell(numbers_of(features, reference, plan.metrics, seconds), facts)
        cell.numbers.update(variety)
        for rows in embedded:
            cell.numbers.update(self._agreement(rows, seed))
        if shown:
            cell.pictures["strip"] = side_by_side(shown)
        if training is not None:
            cell.take_nearest(*nearest_training(_rows(features), training, dict(enumerate(shown))))
        return cell

    def _variety(self, model: Generator, row: Row, seed: int) -> Numbers:
        """Mean distance and Vendi score of images of one caption, on the protocol's features."""
        plan = self.plan
        captions = list(dict.fromkeys(self.ground.prompts(seed)))[: plan.variety_captions]
        if not captions:
            return {}
        prompts = [caption for caption in captions for _ in range(plan.per_caption)]
        first = seed * NOISE + plan.images  # noise that no other image of the seed has
        made = Generated(model, prompts, len(prompts), row.steps, row.guidance, first, plan.eta)
        passes = [Pass(self.how.extractor)]
        (features,) = collect_several(made, self.how.protocol, passes, len(prompts), self.quiet)
        if not is_first():
            return {}
        rows = _rows(features).features
        return {"variety": diversity(rows, prompts), "vendi": vendi_within(rows, prompts)}

    def _floor(self, seed: int) -> Cell:
        """Real images in a generator's place. Nearest training images are sought for those outside the training set."""
        real = self.ground.real(seed)
        assert real is not None, "without real images there is no such cell"
        embedded = None
        if self.how.towers is not None and real.captioned is not None:
            towers = [Pass(self.how.towers)]
            (embedded,) = collect_several(real.captioned, self.how.protocol, towers, self.with_towers, self.quiet)
        if self._unseen is None and real.unseen is not None:  # once, since they are the same for every seed
            self._unseen = self._agreement_unseen(real.unseen)
        if not is_first():
            return Cell({})
        reference = self.ground.reference(seed)
        facts = {"n_reference": reference.n, "unseen": self._unseen or None}
        cell = Cell(numbers_of(real.features, reference, self.plan.metrics, None), facts)
        if embedded is not None:
            cell.numbers.update(self._agreement(embedded, seed))
        if self.shown(seed) and real.captioned is not None:
            n = min(SAMPLES, self.plan.images)
            cell.pictures["strip"] = side_by_side([real.captioned.read(i) for i in range(n)])
        if self.ground.training is not None and real.unseen is not None:
            features, images, _ = real.unseen
            spread = {}
            if images is not None and self.shown(seed):
                n = min(SAMPLES, features.n)
                spread = {row: images.read(row) for row in (i * features.n // n for i in range(n))}
            cell.take_nearest(*nearest_training(features, self.ground.training, spread))
        return cell

    def _agreement(self, embedded: Features, seed: int) -> Numbers:
        assert self.how.towers is not None
        captions = self.ground.captions(seed, self.with_towers)
        if seed not in self._texts:  # one seed's at a time
            self._texts = {seed: texts_of(self.how.towers, captions)}
        return self._short(agreement_numbers(self.how.towers, _rows(embedded), captions, self._texts[seed]))

    def _agreement_unseen(self, unseen: Unseen) -> dict[str, Any]:
        """Agreement on images of held-out concepts, as many as a cell has or all there are.

        Only towers whose heads saw all the other concepts need it. R@1 compares at an equal number of captions. The
        images are drawn, always the same ones, because neighbours in the set are often alike.
        """
        images, known, towers = unseen.images, unseen.captions, self.how.towers
        if towers is None or towers.kind != "align" or images is None or known is None:
            return {}
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        chosen = order[: self.with_towers].tolist()
        captions = [known[i] for i in chosen]
        some = InMemory(torch.stack([images.read(i) for i in chosen]), captions, images.name)
        (embedded,) = collect_several(some, self.how.protocol, [Pass(towers)], len(some), self.quiet)
        if not is_first():
            return {}
        return {**self._short(agreement_numbers(towers, _rows(embedded), captions)), "n": len(some)}

    def _short(self, found: Mapping[str, Any]) -> Numbers:
        """Agreement as KIND_score, KIND_score_se, KIND_r1, KIND_r5, KIND_captions; the record names the towers once."""
        assert self.how.towers is not None
        kind, key = self.how.towers.kind, self.how.towers.key
        named = {name: f"{kind}_{name}{key}" for name in ("score", "score_se", "r1", "r5")}
        numbers = {f"{kind}_{name}": found[long] for name, long in named.items()}
        return finite({**numbers, f"{kind}_captions": found[f"{kind}_captions"]})


def warm_up(models: Sequence[Generator], prompt: str) -> None:
    """One step of each generator, so that the first cell's seconds are not those of moving and compiling."""
    for model in models:
        list(generate(model, [prompt] * CHUNK, 1, 1.0, batch_size=CHUNK))


def _rows(features: Features) -> FeatureRows:
    assert isinstance(features, FeatureRows)
    return features
