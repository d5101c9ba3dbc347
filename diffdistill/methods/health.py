"""Whether a student stays healthy while it trains: variety, contrast and saturation against the teacher's.

    a few captions, some noises --student--> images --+--> features --> distance to the teacher's, variety
                                --teacher--> images --+--> pixels ----> contrast, saturation

The teacher's images are made once, before training. Features are those of two tuning encoders, so the judging
encoders (`evaluation.battery`) remain for the last look.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import Condition
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.evaluation.battery.encoders import WATCHED, build_encoder
from diffdistill.evaluation.battery.numbers import geometric_mean
from diffdistill.evaluation.distances.within import distance_within, spread_within
from diffdistill.evaluation.quick import diversity
from diffdistill.launched import is_first
from diffdistill.models.prompt_table import PromptTable
from diffdistill.models.teacher import Teacher

from .base import Validation
from .settings import HealthSettings
from .teacher_sampler import check_sampler, sampled

LIMITS = {"variety": (0.6, 1.4), "contrast": (0.8, 1.25), "saturation": (0.75, 1.33)}
STEP = 0.05  # further away than this, a ratio that is outside is told again
BATCH = 32
SAMPLED = "DPM-Solver++, both in their weights' own precision"  # a part of the protocol
ELEMENTS = 1 << 18  # of the latents that are sampled at a time

Sampler = Callable[[SampleRandom, Condition], Tensor]


class Health:
    """Measures a student on a fixed small set.

    Args:
        settings: number of captions and images, and the teacher's sampler.
        teacher: the teacher.
        prompts: the run's prompts; captions are spread evenly over them.

    Raises:
        UserError: there are fewer prompts than captions, or an encoder's weights are missing.
    """

    def __init__(self, settings: HealthSettings, teacher: Teacher, prompts: Sequence[str]) -> None:
        self.settings, self.teacher = settings, teacher
        n, different = settings.captions, list({text: row for row, text in reversed(list(enumerate(prompts)))}.values())
        if n > len(different):
            raise UserError(f"health.captions is {n}; there are {len(different)} different prompts")
        check_sampler(teacher, settings.steps, "health.steps")
        different.sort()
        spread = [different[i * len(different) // n] for i in range(n)]
        self.rows = [row for row in spread for _ in range(settings.per_caption)]
        self.captions = [prompts[row] for row in self.rows]
        try:
            self.encoders: dict[str, Any] = {name: build_encoder(name) for name in WATCHED}
        except UserError as error:
            raise UserError(f"health: {error}; or set health.captions to 0") from error
        self.theirs: dict[str, Tensor] = {}
        self.spread: dict[str, float] = {}
        self.pixels: dict[str, float] = {}
        self._table: PromptTable | None = None
        self._device = torch.device("cpu")
        self._worst: dict[str, float] = {}  # how far outside its limits a ratio was when last told; 0 inside

    def prepare(self, table: PromptTable, null: Condition, device: torch.device) -> None:
        """Make the teacher's images, in the main process, which alone measures.

        Args:
            table: conditions of the prompts.
            null: that of the empty prompt, on the device.
            device: where the teacher is.

        Raises:
            UserError: the teacher's images are not finite.
        """
        self._table, self._device = table, device
        if not is_first():
            return
        s = self.settings

        def sample(random: SampleRandom, cond: Condition) -> Tensor:
            z = random.normal("teacher", self.teacher.latent_shape)
            return sampled(self.teacher, z, cond, null, s.steps, s.guidance_scale)

        images = self._images(sample)
        if not bool(images.isfinite().all()):
            raise UserError("health: images of the teacher are not finite; set teacher.dtype to float32 or bfloat16")
        self.theirs = {name: encoder(images) for name, encoder in self.encoders.items()}
        self.spread = {name: spread_within(found, self.captions) for name, found in self.theirs.items()}
        self.pixels = pixel_numbers(images)

    def measure(self, sample: Sampler) -> Validation:
        """The numbers of a student, as ratios to the teacher's.

        Args:
            sample: makes latents of noise, as the exported student does.
        """
        images = self._images(sample)
        if not bool(images.isfinite().all()):
            return Validation(remarks=("warning: the student's images are not finite",))
        features = {name: encoder(images) for name, encoder in self.encoders.items()}
        distances, varieties = {}, []
        for name, found in features.items():
            theirs = self.theirs[name]
            distances[name] = distance_within(found, theirs, self.captions) / max(self.spread[name], 1e-12)
            varieties.append(diversity(found, self.captions) / max(diversity(theirs, self.captions), 1e-12))
        ratios = {"variety": geometric_mean(varieties) or 0.0}
        ratios |= {name: value / max(self.pixels[name], 1e-12) for name, value in pixel_numbers(images).items()}
        score = statistics.fmean(distances.values())
        numbers = {**ratios, "distance": score, **{f"distance_{name}": value for name, value in distances.items()}}
        protocol = json.dumps(
            [SAMPLED, dataclasses.asdict(self.settings), [e.protocol for e in self.encoders.values()]]
        )
        return Validation(numbers=numbers, score=score, remarks=self._drifting(ratios), protocol=protocol)

    def _drifting(self, ratios: dict[str, float]) -> tuple[str, ...]:
        """A line for each ratio that has left its limits, or is further outside than when a line last said so.

        A ratio that starts outside, as those of an untrained student do, is compared with its start.
        """
        found = []
        for name, value in ratios.items():
            low, high = LIMITS[name]
            away = max(low - value, value - high)
            worst = self._worst.setdefault(name, max(away, 0.0))
            if away <= 0:
                self._worst[name] = 0.0
            elif worst == 0 or away > worst + STEP:
                found.append(f"warning: the student's {name} drifts: it is {value:.2f} of the teacher's")
                self._worst[name] = away
        return tuple(found)

    @torch.no_grad()
    def _images(self, sample: Sampler) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], on the CPU."""
        assert self._table is not None, "`prepare` comes first"
        parts = []
        batch = max(1, min(BATCH, ELEMENTS // math.prod(self.teacher.latent_shape)))
        for start in range(0, len(self.rows), batch):
            rows = self.rows[start : start + batch]
            random = SampleRandom(0, range(start, start + len(rows)), self._device)
            latents = sample(random, self._table.rows(rows))
            parts.append(self.teacher.latents.images(latents).float().clamp(0, 1).cpu())
        return torch.cat(parts)


def pixel_numbers(images: Tensor) -> dict[str, float]:
    """Contrast and saturation of images, each a mean over images.

    Contrast is the standard deviation of the luma (Rec. 601) over the pixels of an image. Saturation is the mean over
    pixels of the largest channel minus the smallest.

    Args:
        images: Tensor of shape (N, 3, H, W), in [0, 1].

    >>> pixel_numbers(torch.tensor([0.0, 1.0]).expand(1, 3, 4, 2))
    {'contrast': 0.5..., 'saturation': 0.0}
    """
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).flatten(1)
    chroma = images.amax(1) - images.amin(1)
    return {"contrast": float(luma.std(1).mean()), "saturation": float(chroma.mean())}
