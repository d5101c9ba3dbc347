"""Text to 3D: a generator of objects is trained by the scores of a teacher of views, through rendered views.

    prompts --generator--> field --rendered from several sides--> views --encoded--> x0 --noise--> x_t
                                                                     ^ gradient  <-- Judge: the frozen teacher

The teacher is the small multi-view prior of this project (`prior`), Stable Diffusion or MVDream (`teacher`).

Notable:
- no 3D data, and no images, are read: what the generator learns comes from the teacher's scores alone;
- how views are rendered is a part of its own (`text_to_3d_views`), and so is what a teacher is told
  (`text3d.teachers`);
- the prior is told the colour of the background, which is white or random;
- the ranges of times, the guidance, the sharpness of the surface and the weights of the terms may change over the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.distill import RESIDUALS, SampleRandom
from diffdistill.errors import UserError
from diffdistill.models.digests import weights_digest
from diffdistill.text3d.background import LearnedBackground
from diffdistill.text3d.baked_views import BakedRings, Grid
from diffdistill.text3d.embedder import WordEmbedder
from diffdistill.text3d.generators.generator import Generator
from diffdistill.text3d.model import TextTo3DModel, save_model
from diffdistill.text3d.prior import MultiViewPrior, digest_of, load_prior
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.text3d.teachers.embedded_prior import EmbeddedPriorViews
from diffdistill.text3d.teachers.view_teacher import ViewTeacher
from diffdistill.text3d.text_encoder import TextEmbedder, embedder_of
from diffdistill.text3d.things.viewpoints import RING

from .base import (
    FREE_ARGUMENTS,
    Batch,
    Loss,
    Method,
    OptimizerSettings,
    Phase,
    Validation,
    unwrap,
)
from .content import digest, of_teacher
from .judge import Judge
from .text_to_3d_settings import Judging, Regularisers, Rendering, ViewTeacherSettings
from .text_to_3d_views import BakedRingViews, DenseViews

SHOWN, SHOWN_SIDE = 12, 64  # objects that validation shows, and the side of their views in pixels


class TextTo3D(Method):
    """Train a generator of 3D objects from prompts.

    Args:
        prior: folder of a multi-view prior, from `MultiViewDiffusion`; null with a large teacher.
        prompts: file of prompts; see `docs/data.md`.
        generator: a name in `text3d.generators.PRESETS`.
        judging: how views are judged.
        rendering: how they are rendered.
        regularisers: further terms.
        optimizer: of the generator.
        teacher: a large teacher in place of a prior.

    Raises:
        UserError: a setting is out of its range or does not fit the teacher, there is not one teacher, or it is not
            there; a prior does not know a word of a prompt, or denoises another number of views than a ring has.
    """

    averaged = "generator"
    free = {"teacher.attention": FREE_ARGUMENTS["teacher.attention"]}

    def __init__(
        self,
        prior: str | None,
        prompts: str,
        generator: str = "hyper_small",
        judging: Judging = Judging(),
        rendering: Rendering = Rendering(),
        regularisers: Regularisers = Regularisers(),
        optimizer: OptimizerSettings = OptimizerSettings(5e-3, (0.0, 0.99)),
        teacher: ViewTeacherSettings = ViewTeacherSettings(),
    ) -> None:
        self.judging, self.rendering, self.regularisers = judging, rendering, regularisers
        if (prior is None) == (teacher.source is None):
            found = "neither is" if prior is None else "both are"
            raise UserError(f"text to 3D has one teacher, prior or teacher.source; {found} set")
        self.prompts = read_prompts(prompts)
        self.prior: MultiViewPrior | None = None
        self.teacher, embedder, made_from = self._prior(prior) if prior is not None else self._large(teacher)
        made = TextTo3DModel(generator, embedder, rendering.sharpness.last)
        self.views = self._views(made.generator.radius)
        self.content = {**made_from, "prompts": digest(self.prompts)}
        self.networks = {"generator": made}
        self.optimizers = {"generator": optimizer}
        if rendering.renderer == "dense" and rendering.dense.background == "learned":
            self.networks["background"] = LearnedBackground()
            self.optimizers["background"] = rendering.dense.background_optimizer
        self.trained = tuple(self.networks)
        fake = judging.fake if "fake" in RESIDUALS[judging.residual].needs else None
        if fake is not None and fake.network == "lora" and not self.teacher.can_adapt:
            raise UserError("judging.fake.network is 'lora'; with a prior it is 'full'")
        self.judge = Judge(self.teacher, judging.times, 1.0, fake)  # type: ignore[arg-type]
        self.judge.add_networks(self.networks, self.optimizers)
        if fake is not None:
            self.networks["fake"] = self.teacher.fake(self.networks["fake"])
        self.frozen = self.teacher.frozen(self.judge.shared)
        self._step, self._sharpness, self._residual = 0, rendering.sharpness.first, judging.residual
        self.judge.guidance_scale = judging.guidance_scale.first

    def _prior(self, folder: str) -> tuple[ViewTeacher, WordEmbedder, dict[str, str]]:
        prior = self.prior = load_prior(folder)
        if (views := prior.backbone.settings.views) != RING:
            raise UserError(
                f"the prior at {folder} denoises {views} views at once, and a ring has {RING}; take a prior whose "
                f"network.views is {RING}"
            )
        embedder = WordEmbedder(prior.vocabulary, prior.backbone.words.weight)
        embedder(self.prompts)  # a prompt with unknown words is refused here
        return EmbeddedPriorViews(prior), embedder, {"prior": digest_of(prior)}

    def _large(self, settings: ViewTeacherSettings) -> tuple[ViewTeacher, TextEmbedder, dict[str, str]]:
        teacher = settings.load(self.prompts)
        content = {"teacher.source": of_teacher(teacher.teacher)}
        if settings.adapter.weights is not None:  # the encoder of cameras is not among the pipeline's networks
            content["teacher.adapter.weights"] = weights_digest(teacher.backbone)
        for residual in (self.judging.residual, self.judging.finish):
            guided = residual is None or "guided" in RESIDUALS[residual].needs
            if settings.directions.mode == "perp_neg" and not guided:
                raise UserError(
                    f"teacher.directions.mode is 'perp_neg', which changes guidance; {residual} is not guided, so set "
                    "it to words"
                )
        embedder = embedder_of(teacher.teacher, settings.variant, settings.dtype)
        embedder.remember(teacher.texts.__contains__, teacher.texts)
        return teacher, embedder, content

    def _views(self, radius: float) -> BakedRingViews | DenseViews:
        """The part that renders; it must fit the teacher and give all terms that have a weight."""
        views: BakedRingViews | DenseViews
        if self.rendering.renderer == "dense":
            views = DenseViews(self.rendering, self.teacher)
        elif self.teacher.side is None:
            raise UserError("rendering.renderer is baked, which is for a prior; a large teacher takes dense")
        else:
            views = BakedRingViews(self.rendering, radius, self.teacher.side)
        if missing := sorted(self.regularisers.used - set(views.terms)):
            raise UserError(f"regularisers.{missing[0]} needs rendering.renderer dense; it is baked")
        return views

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def grid(self) -> Grid:
        """The grid of the baked renderer."""
        assert isinstance(self.views, BakedRingViews)
        return self.views.grid

    @property
    def pool(self) -> BakedRings | None:
        """The pool of rings of the baked renderer; None where each step has a new one."""
        return self.views.pool if isinstance(self.views, BakedRingViews) else None

    def prepare(self, device: torch.device | str) -> None:
        """Move the teacher, embed the prompts, and prepare what renders."""
        self.device = torch.device(device)
        self.teacher.prepare(self.device)
        self.views.prepare(self.device)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of the fake score in the backward pass; views are rendered so in any case."""
        inner = getattr(self.networks.get("fake"), "inner", None)
        if inner is None:
            super().enable_gradient_checkpointing()
        inner.enable_gradient_checkpointing()  # type: ignore[union-attr]

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

    @property
    def _rows(self) -> int:
        """How many rows a teacher denoises of each object."""
        return self.views.views // self.teacher.views

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        prompts = [self.prompts[i] for i in records]
        white = (random.uniform("white") < self.rendering.share_of_white)[:, None]
        colour = random.uniform("background", (3,)).float()
        background = torch.where(white, torch.ones_like(colour), colour).to(self.device)
        views: Any = self.views.draw(random, self._step)
        asked = self.teacher.conditions(
            [prompt for prompt in prompts for _ in range(self._rows)],
            self.views.cameras(views, len(prompts)),
            background.repeat_interleave(self._rows, 0),
        )
        found = {"cond": asked.cond, "null": asked.null, "perp_neg": asked.perp_neg}
        return {"prompts": prompts, "views": views, "background": background, **found}

    def phases(self, step: int) -> list[Phase]:
        fake = self.judge.fake_phases(_unused, self.networks)
        return [Phase("generator", self._trained, self._loss), *map(self._in_rows, fake)]

    @property
    def _trained(self) -> str | tuple[str, ...]:
        return self.trained if len(self.trained) > 1 else "generator"

    def _in_rows(self, phase: Phase) -> Phase:
        """A phase whose samples are rows of objects."""

        def loss(batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
            return phase.loss(batch, self._of_rows(random), carry)

        return dataclasses.replace(phase, loss=loss)

    def _of_rows(self, random: SampleRandom) -> SampleRandom:
        return random if self._rows == 1 else random.views(self._rows)

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        generator, prompts = self.networks["generator"], batch["prompts"]
        kind: Generator = unwrap(generator).generator
        noise = random.normal("object", (kind.noise_dim,)) if kind.noise_dim else None
        layers = [random.normal(f"layer {i}", shape) for i, shape in enumerate(kind.layer_shapes)] or None
        weights = {name: self._now(getattr(self.regularisers, name)) for name in self.views.terms}
        used = {name: weight for name, weight in weights.items() if weight}
        made = self.views.render(
            generator(prompts, noise, layers),
            batch["views"],
            self._sharpness,
            batch["background"],
            used,
            self.networks.get("background"),
        )
        x0 = self.teacher.encode(made.colour.flatten(0, 1).unflatten(0, (-1, self.teacher.views)))
        carry["x0"] = x0.detach()
        loss, logs = self.judge.loss(
            x0,
            batch["cond"],
            self._of_rows(random),
            residual=self._residual,
            weight=self.judging.weight,
            eta=self.judging.eta,
            null=batch["null"],
            perp_neg=batch["perp_neg"],
            reduction=self.judging.reduction,
        )
        if self.judging.reduction == "batch":
            loss = loss / self.teacher.views
        for name, weight in used.items():
            term: Tensor = made.terms[name]()
            loss, logs[name] = loss + weight * term, term.detach()
        return loss, {**logs, "opacity": made.opacity.detach().mean()}

    @torch.no_grad()
    def validate(self) -> Validation:
        """Four views of some prompts, on white."""
        model: TextTo3DModel = unwrap(self.networks["generator"])
        prompts = self.prompts[:: max(1, len(self.prompts) // SHOWN)][:SHOWN]
        colours, opacities = self.views.shown(model, prompts, SHOWN_SIDE)
        opacity = opacities.mean((1, 2, 3))
        numbers = {"least_opacity": float(opacity.min()), "most_opacity": float(opacity.max())}
        return Validation(colours.flatten(0, 1).clamp(0, 1), numbers)

    def export(self, folder: Path) -> None:
        save_model(unwrap(self.networks["generator"]), folder)


def _unused(network: Any, random: SampleRandom, cond: Any, draw: str = "") -> Tensor:
    """The fake score has one update a step, on views that were just made; it asks for no others."""
    raise AssertionError("the fake score asked for new samples")
