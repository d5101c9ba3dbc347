"""What a sweep measures and how: the settings of `comparison.sweep.Sweep`, checked on their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from diffdistill.data.text_files import check_text
from diffdistill.errors import UserError
from diffdistill.evaluation.agreement.scores import Towers
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.measure import Reading
from diffdistill.evaluation.metrics import check_metrics
from diffdistill.evaluation.page.record import MAX_COUNTS
from diffdistill.evaluation.protocols import Protocol

IMAGES = 512  # of a cell, where neither the caller nor the protocol names a number
NOISE = 1_000_000  # seeds of noise that one seed of the sweep has for itself


@dataclass(frozen=True)
class SweptGenerator:
    """One generator of a sweep.

    Args:
        name: how rows and files call it.
        source: a pipeline folder or a hub id.
        kind: "model" is measured at every guidance scale. "student" is measured without guidance, because guidance was
            distilled into it.
        written: how the record names the source; None for `source` itself.
    """

    name: str
    source: str
    kind: Literal["model", "student"] = "model"
    written: str | None = None


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep measures. Values that are given twice are taken once.

    Args:
        generators: at least one, each of another name.
        steps: numbers of sampling steps, at least 1.
        guidance: guidance scales of models, from 1, which is unguided.
        seeds: each draws its own noise, and its own prompts where they come from a captioned set.
        images: images of a cell, that is, for one generator at one number of steps, one scale and one seed.
        agreement_images: how many of a cell's images are compared with their captions, from the first on; at least 2.
        metrics: of `evaluation.metrics.METRICS`.
        variety_captions: number of captions, from the first on, that are drawn several times for the variety within a
            caption; all that there are where these are fewer, and 0 for no such number.
        per_caption: number of images of each of these.
        eta: noise while sampling, from 0 to 1; None for each generator's own.

    Raises:
        UserError: a value out of range, or more generators, seeds or rows than a report can show.
    """

    generators: Sequence[SweptGenerator]
    steps: Sequence[int] = (1, 2, 4, 8, 25, 50)
    guidance: Sequence[float] = (1.0, 2.0, 3.0, 4.0)
    seeds: Sequence[int] = (0, 1, 2)
    images: int = IMAGES
    agreement_images: int = 128
    metrics: Sequence[str] = ("fd", "kd", "prdc")
    variety_captions: int = 16
    per_caption: int = 4
    eta: float | None = None

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float, float], ...] = (
            ("steps", 1, math.inf),
            ("guidance", 1, 1e6),
            ("seeds", 0, 2**40),
        )
        for name, least, most in ranges:
            for value in getattr(self, name):
                if not least <= value <= most or value == math.inf:
                    bounds = f"at least {least}" if most == math.inf else f"from {least} to {most:g}"
                    raise UserError(f"{name} has {value:g}; each must be {bounds}")
        for name in ("steps", "guidance", "seeds", "metrics"):
            object.__setattr__(self, name, list(dict.fromkeys(getattr(self, name))))
        if self.agreement_images < 2:
            raise UserError(f"agreement_images is {self.agreement_images}; it must be at least 2")
        if self.variety_captions < 0 or self.per_caption < 2:
            raise UserError(
                f"variety_captions is {self.variety_captions} and per_caption {self.per_caption}; they must be at "
                "least 0 and 2"
            )
        most = NOISE - self.variety_captions * self.per_caption
        if not 1 <= self.images <= most:
            raise UserError(f"images is {self.images}; it must be from 1 to {most}, above which seeds share noise")
        if not self.generators:
            raise UserError("there is nothing to measure; name a generator")
        for generator in self.generators:
            check_text(generator.source, "a generator's source")
        models = sum(generator.kind == "model" for generator in self.generators)
        rows = (models * len(self.guidance) + len(self.generators) - models) * len(self.steps)
        for what, n in (("generators", len(self.generators)), ("seeds", len(self.seeds)), ("rows", rows)):
            if n > MAX_COUNTS[what]:
                raise UserError(f"these are {n} {what}; a report shows at most {MAX_COUNTS[what]}")

    def names(self, kind: str) -> list[str]:
        """Names of the generators of one kind, in order."""
        return [generator.name for generator in self.generators if generator.kind == kind]


@dataclass(frozen=True)
class SweepProtocol:
    """How a sweep measures.

    Args:
        protocol: crop, resize and quantisation of images.
        extractor: the protocol's, built.
        towers: of agreement with captions; None leaves agreement out.
        reading: how images are read.
    """

    protocol: Protocol
    extractor: Extractor
    towers: Towers | None = None
    reading: Reading = field(default_factory=Reading)

    def check(self, plan: SweepPlan) -> None:
        """Raise UserError where the plan's metrics cannot be computed on these features or with so few images."""
        check_metrics(plan.metrics, plan.images, self.extractor.name)
