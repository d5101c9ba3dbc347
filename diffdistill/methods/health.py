"""Whether a student stays healthy while it trains: variety, contrast and saturation against the teacher's.

    a few captions, some noises --student--> images --+--> features --> distance to the teacher's, variety
                                --teacher--> images --+--> pixels ----> contrast, saturation

The teacher's images are made once, before training. Features are those of the tuning encoders alone, so the judging
encoders (`evaluation.battery`) remain for the last look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import Condition, FlowSchedule, GuidedDenoiser, Prediction, ddim, euler
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.evaluation.battery.encoders import TUNING, build_encoder
from diffdistill.evaluation.battery.numbers import geometric_mean
from diffdistill.evaluation.distances.within import distance_within
from diffdistill.evaluation.quick import diversity
from diffdistill.models.prompt_table import PromptTable
from diffdistill.models.teacher import Teacher

from .base import Validation
from .settings import HealthSettings

LIMITS = {"variety": (0.6, 1.4), "contrast": (0.8, 1.25), "saturation": (0.75, 1.33)}
STEP = 0.03  # a change of a ratio that counts
BATCH = 32

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
        n = settings.captions
        if n > len(set(prompts)):
            raise UserError(f"health.captions is {n}; there are {len(set(prompts))} different prompts")
        spread = [i * len(prompts) // n for i in range(n)]
        self.rows = [row for row in spread for _ in range(settings.per_caption)]
        self.captions = [prompts[row] for row in self.rows]
        try:
            self.encoders: dict[str, Any] = {name: build_encoder(name) for name in TUNING}
        except UserError as error:
            raise UserError(f"health: {error}; or set health.captions to 0") from error
        self.theirs: dict[str, Tensor] = {}
        self.pixels: dict[str, float] = {}
        self._table: PromptTable | None = None
        self._device = torch.device("cpu")
        self._last: dict[str, float] = {}

    def prepare(self, table: PromptTable, null: Condition, device: torch.device) -> None:
        """Make the teacher's images.

        Args:
            table: conditions of the prompts.
            null: that of the empty prompt, on the device.
            device: where the teacher is.
        """
        self._table, self._device = table, device
        s, schedule = self.settings, self.teacher.schedule
        score = GuidedDenoiser(self.teacher.denoiser(), null, s.guidance_scale)
        sampler = euler if isinstance(schedule, FlowSchedule) else ddim

        def sample(random: SampleRandom, cond: Condition) -> Tensor:
            def predict(x: Tensor, t: Tensor) -> Prediction:
                return score(x, t, cond)

            return sampler(predict, random.normal("teacher", self.teacher.latent_shape), schedule, s.steps)

        images = self._images(sample)
        self.theirs = {name: encoder(images) for name, encoder in self.encoders.items()}
        self.pixels = pixel_numbers(images)

    def measure(self, sample: Sampler) -> Validation:
        """The numbers of a student, as ratios to the teacher's where they are not distances.

        Args:
            sample: makes latents of noise, as the exported student does.
        """
        images = self._images(sample)
        features = {name: encoder(images) for name, encoder in self.encoders.items()}
        distances = {name: distance_within(features[name], self.theirs[name], self.captions) for name in features}
        varieties = [
            diversity(features[name], self.captions) / max(diversity(self.theirs[name], self.captions), 1e-12)
            for name in features
        ]
        ratios = {"variety": geometric_mean(varieties) or 0.0}
        ratios |= {name: value / max(self.pixels[name], 1e-12) for name, value in pixel_numbers(images).items()}
        score = geometric_mean([max(value, 1e-6) for value in distances.values()]) or 0.0
        numbers = {**ratios, "distance": score, **{f"distance_{name}": value for name, value in distances.items()}}
        return Validation(numbers=numbers, score=score, remarks=self._drifting(ratios))

    def _drifting(self, ratios: dict[str, float]) -> tuple[str, ...]:
        """A line for each ratio that is outside its limits and went further away since it was last measured."""
        found = []
        for name, value in ratios.items():
            low, high = LIMITS[name]
            before = self._last.get(name)
            if before is not None and not low <= value <= high and abs(value - 1) > abs(before - 1) + STEP:
                found.append(
                    f"warning: the student's {name} drifts: {value:.2f} of the teacher's, and {before:.2f} before"
                )
        self._last = dict(ratios)
        return tuple(found)

    @torch.no_grad()
    def _images(self, sample: Sampler) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], on the CPU."""
        assert self._table is not None, "`prepare` comes first"
        parts = []
        for start in range(0, len(self.rows), BATCH):
            rows = self.rows[start : start + BATCH]
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
