"""What a sweep's record, `sweep.json`, holds, as dataclasses, and the limits on its contents.

Importing this module needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2
MAX_JSON_BYTES = 32 << 20
MAX_PNG_BYTES = 64 << 20
MAX_PIXELS = 40_000_000  # in one strip
MAX_TEXT = 10_000
MAX_NAME = 400  # characters of a path in the record
MAX_GENERATOR = 100  # characters of a generator's name, which is part of file names
MAX_NUMBER = 1e12  # so that differences of numbers stay finite
MAX_COUNTS = {"generators": 32, "rows": 1000, "seeds": 64, "metrics": 64, "prompts": 24}
PICTURE_SIDE = 128  # images with a longer side are made smaller, by the sweep and again by the reader

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Generator:
    """One generator.

    Attributes:
        name: how rows call it.
        model: its folder or hub id.
        digest: a hash of its weights and settings.
        kind: "model" or "student".
    """

    name: str
    model: str
    digest: str
    kind: str


@dataclass(frozen=True)
class Measured:
    """The numbers of one set of images.

    Attributes:
        seeds: the numbers of each seed.
        mean, sd: over the seeds; an sd is None where there is one seed.
        of_seeds: number of seeds of the sweep, of which fewer may be here while it is not complete.
        strip: the PNG of the sample prompts' images side by side, relative to the sweep's folder.
        nearest: a PNG of two rows, images and the nearest training image of each.
        distances: of those pairs.
    """

    seeds: dict[str, Numbers]
    mean: Numbers
    sd: Numbers
    of_seeds: int
    strip: str | None
    nearest: str | None
    distances: list[float] | None


@dataclass(frozen=True)
class Row(Measured):
    """One generator at one number of steps and one guidance scale.

    Attributes:
        generator: its name.
        steps, guidance: of the sampler.
        nfe: network passes for an image; None where they are not known.
    """

    generator: str
    steps: int
    guidance: float
    nfe: int | None


@dataclass(frozen=True)
class Floor(Measured):
    """Real images in a generator's place.

    Attributes:
        unseen: agreement of held-out concepts' images with their captions; None where it was not measured.
    """

    unseen: Numbers | None


@dataclass(frozen=True)
class Retrieval:
    """How well towers retrieve the captions of concepts that were held out from their training.

    Attributes:
        r1, r5: R@1 and R@5.
        among: number of captions.
        score: mean cosine.
    """

    r1: float
    r5: float
    among: int
    score: float


@dataclass(frozen=True)
class Timing:
    """What seconds_per_image was measured on."""

    threads: int
    device: str


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        raw: the record as it was read.
        held_out: how well agreement's towers retrieve held-out captions, where that is known.
        prompts_of: "training" for captions of an emoji set, or "file".
        nearest_of: "training" or "reference": the images among which nearest ones were sought.
        eta: noise while sampling, from 0 to 1; None where each generator was sampled with its own.
    """

    folder: Path
    raw: dict[str, Any]
    protocol: dict[str, Any]
    agreement: dict[str, Any] | None
    agreement_metric: str | None
    held_out: Retrieval | None
    reference: str
    reference_n: int
    pictures: int
    agreement_pictures: int | None
    seeds: list[int]
    complete: bool
    generators: list[Generator]
    rows: list[Row]
    floor: Floor | None
    prompts: list[str]
    prompts_of: str
    nearest_of: str
    timing: list[Timing]
    eta: float | None
