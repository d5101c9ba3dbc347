"""Text to 3D: a generator of objects is trained by the scores of a multi-view prior, through rendered views.

    prompts --generator--> field --baked on a grid, rendered as a ring of views--> x0 --noise--> x_t
                                                                     ^ gradient  <-- Judge: the frozen prior

Notable:
- no 3D data, and no images, are read: what the generator learns comes from the prior's scores alone;
- all objects of a step are seen from one ring of cameras, drawn from a pool that is prepared once. The step draws it,
  not a sample, so that micro-batches and processes share it and a run does not depend on their number;
- the prior is told the colour of the background, which is white or random;
- the ranges of times, the guidance and the sharpness of the surface may change over the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.distill import RESIDUALS, SampleRandom
from diffdistill.errors import UserError
from diffdistill.text3d import regularisers
from diffdistill.text3d.baked import bake, render_baked
from diffdistill.text3d.baked_views import BakedRings, BakedViews, Grid, bake_views
from diffdistill.text3d.embedder import WordEmbedder
from diffdistill.text3d.model import TextTo3DModel, save_model
from diffdistill.text3d.prior import digest_of, load_prior, without_words
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.text3d.things.viewpoints import RING, ring_starts, ring_views, view_cameras

from .base import (
    Batch,
    Loss,
    Method,
    OptimizerSettings,
    Phase,
    Validation,
    unwrap,
)
from .content import digest
from .judge import Judge
from .text_to_3d_settings import Judging, Regularisers, Rendering

SHOWN, SHOWN_SIDE = 12, 64  # objects that validation shows, and the side of their views in pixels
STEADY_SEED = 7  # of the pool of rings


class TextTo3D(Method):
    """Train a generator of 3D objects from prompts.

    Args:
        prior: folder of a multi-view prior, from `MultiViewDiffusion`.
        prompts: file of prompts; see `docs/data.md`.
        generator: a name in `text3d.generators.PRESETS`.
        judging: how views are judged.
        rendering: how they are rendered.
        regularisers: further terms.
        optimizer: of the generator.

    Raises:
        UserError: a setting is out of its range, the prior is not there, denoises another number of views than a ring
            has, or does not know a word of a prompt.
    """

    averaged = "generator"

    def __init__(
        self,
        prior: str,
        prompts: str,
        generator: str = "hyper_small",
        judging: Judging = Judging(),
        rendering: Rendering = Rendering(),
        regularisers: Regularisers = Regularisers(),
        optimizer: OptimizerSettings = OptimizerSettings(5e-3, (0.0, 0.99)),
    ) -> None:
        self.prior, self.prompts = load_prior(prior), read_prompts(prompts)
        if (views := self.prior.backbone.settings.views) != RING:
            raise UserError(
                f"the prior at {prior} denoises {views} views at once, and a ring has {RING}; take a prior whose "
                f"network.views is {RING}"
            )
        self.judging, self.rendering, self.regularisers = judging, rendering, regularisers
        embedder = WordEmbedder(self.prior.vocabulary, self.prior.backbone.words.weight)
        embedder(self.prompts)  # a prompt with unknown words is refused here
        made = TextTo3DModel(generator, embedder, rendering.sharpness.last)
        self.networks = {"generator": made}
        self.optimizers = {"generator": optimizer}
        self.frozen = {"prior": self.prior.backbone}
        fake = judging.fake if "fake" in RESIDUALS[judging.residual].needs else None
        self.judge = Judge(self.prior, judging.times, 1.0, fake)  # type: ignore[arg-type]
        self.judge.add_networks(self.networks, self.optimizers)
        self.content = {"prior": digest_of(self.prior), "prompts": digest(self.prompts)}
        self.grid = Grid(rendering.resolution, made.generator.radius)
        self.pool: BakedRings | None = None
        self._step, self._sharpness, self._residual = 0, rendering.sharpness.first, judging.residual
        self.judge.guidance_scale = judging.guidance_scale.first

    def __len__(self) -> int:
        return len(self.prompts)

    def prepare(self, device: torch.device | str) -> None:
        """Prepare the pool of rings."""
        super().prepare(device)
        self.grid.to(self.device)
        if self.rendering.rings:
            random = SampleRandom(STEADY_SEED, range(self.rendering.rings))
            starts, jitters = random.uniform("ring", (2,)), random.uniform("jitter", self._jitter_shape)
            size = self.prior.backbone.settings.size
            rings = [self._cameras(start) for start in starts]
            jitter = [one.float().to(self.device) for one in jitters]
            self.pool = BakedRings(rings, self.grid, size, size, self.rendering.samples, jitter)

    @property
    def _jitter_shape(self) -> tuple[int, ...]:
        settings = self.prior.backbone.settings
        return settings.views, settings.size, settings.size, 1

    def _cameras(self, uniforms: Tensor) -> Any:
        """A ring of cameras of two uniform numbers."""
        azimuth, elevation = ring_views(*ring_starts(uniforms[None].float().cpu()))
        return view_cameras(azimuth[0], elevation[0]).to(self.device)

    def begin_step(self, step: int) -> None:
        """Follow the schedules."""
        self._step = step
        if self.judging.times.moves:
            self.judge.progress = self.progress
        self.judge.guidance_scale = self._now(self.judging.guidance_scale)
        self._sharpness = self._now(self.rendering.sharpness)
        if self.judging.finish is not None and self.progress >= self.judging.finish_from:
            self._residual = self.judging.finish

    def _now(self, schedule: LinearSchedule) -> float:
        """The number of a schedule at this point of the run, which is read only if the number changes."""
        return schedule.last if schedule.first == schedule.last else schedule(self.progress)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        prompts = [self.prompts[i] for i in records]
        white = (random.uniform("white") < self.rendering.share_of_white)[:, None]
        colour = random.uniform("background", (3,)).float()
        background = torch.where(white, torch.ones_like(colour), colour).to(self.device)
        views = self._ring(SampleRandom(random.seed, [self._step], random.device))
        camera = torch.stack([views.cameras.azimuth_deg, views.cameras.elevation_deg], -1)
        cond = self.prior.condition(prompts, camera.expand(len(prompts), -1, -1), background)
        return {"prompts": prompts, "views": views, "background": background, "cond": cond, "null": without_words(cond)}

    def _ring(self, random: SampleRandom) -> BakedViews:
        """The ring of a step, from the random numbers of the step."""
        if self.pool is not None:
            return self.pool[int(random.uniform("ring")[0] * len(self.pool))]  # type: ignore[no-any-return]
        jitter = random.uniform("jitter", self._jitter_shape)[0].float().to(self.device)
        size = self.prior.backbone.settings.size
        cameras = self._cameras(random.uniform("new_ring", (2,))[0])
        return bake_views(cameras, self.grid, size, size, self.rendering.samples, jitter)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("generator", "generator", self._loss), *self.judge.fake_phases(_unused, self.networks)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        generator, prompts = self.networks["generator"], batch["prompts"]
        noise_dim = unwrap(generator).generator.noise_dim
        noise = random.normal("object", (noise_dim,)) if noise_dim else None
        baked = bake(generator(prompts, noise), self.grid)
        background = batch["background"][:, None, :, None, None]
        made = render_baked(baked, batch["views"], self._sharpness, background)
        x0 = 2 * made.colour - 1
        carry["x0"] = x0.detach()
        loss, logs = self.judge.loss(
            x0,
            batch["cond"],
            random,
            residual=self._residual,
            weight=self.judging.weight,
            eta=self.judging.eta,
            null=batch["null"],
        )
        terms = self.regularisers
        parts = {
            "sparsity": (self._now(terms.sparsity), lambda: regularisers.sparsity(made.opacity)),
            "opaque": (self._now(terms.opaque), lambda: regularisers.opaque(made.opacity)),
            "eikonal": (self._now(terms.eikonal), lambda: regularisers.eikonal(self._slopes(baked.sdf))),
        }
        for name, (weight, value) in parts.items():
            if weight:
                term = value()
                loss, logs[name] = loss + weight * term, term.detach()
        return loss, {**logs, "opacity": made.opacity.detach().mean()}

    def _slopes(self, sdf: Tensor) -> Tensor:
        """Differences of a baked distance (N, P) along the edges of each cell from its first corner: (C, P, 3)."""
        corners = self.grid.corners.long()
        step = 2 * self.grid.radius / (self.grid.resolution - 1)
        first = sdf[corners[:, 0]]
        return torch.stack([sdf[corners[:, axis]] - first for axis in (1, 2, 4)], -1) / step

    @torch.no_grad()
    def validate(self) -> Validation:
        """Four views of some prompts, on white."""
        model: TextTo3DModel = unwrap(self.networks["generator"])
        prompts = self.prompts[:: max(1, len(self.prompts) // SHOWN)][:SHOWN]
        views = bake_views(self._cameras(torch.tensor([0.1, 0.5])), self.grid, SHOWN_SIDE, SHOWN_SIDE, 64)
        made = render_baked(bake(model(prompts), self.grid), views, model.sharpness)
        opacity = made.opacity.mean((1, 2, 3))
        numbers = {"least_opacity": float(opacity.min()), "most_opacity": float(opacity.max())}
        return Validation(made.colour.flatten(0, 1).clamp(0, 1), numbers)

    def export(self, folder: Path) -> None:
        save_model(unwrap(self.networks["generator"]), folder)


def _unused(network: Any, random: SampleRandom, cond: Any, draw: str = "") -> Tensor:
    """The fake score has one update a step, on views that were just made; it asks for no others."""
    raise AssertionError("the fake score asked for new samples")
