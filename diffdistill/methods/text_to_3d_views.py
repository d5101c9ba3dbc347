"""How text to 3D draws cameras and renders views in a step: baked on a grid, or by asking the field at each sample.

    BakedRingViews   one ring of cameras a step, from a pool, for all objects: for small systems
    DenseViews       cameras of each object's own; rays with importance sampling: for the papers' sizes

Both say which cameras they drew, which the teacher is told, and give the terms of `regularisers` that they can.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.text3d import regularisers
from diffdistill.text3d.background import background_colours
from diffdistill.text3d.baked import bake, render_baked
from diffdistill.text3d.baked_views import BakedRings, BakedViews, Grid, bake_views
from diffdistill.text3d.camera_ranges import UNIFORMS
from diffdistill.text3d.cameras import Cameras
from diffdistill.text3d.field import Field
from diffdistill.text3d.render import JITTERS, Renderer, RenderSettings, Samples
from diffdistill.text3d.teachers.embedded_prior import ring_cameras
from diffdistill.text3d.teachers.view_teacher import ViewTeacher
from diffdistill.text3d.things.viewpoints import RING

from .text_to_3d_settings import Rendering

STEADY_SEED = 7  # of the pool of rings
Terms = dict[str, Callable[[], Tensor]]


class ViewsShown(NamedTuple):
    """Views of P objects.

    Attributes:
        colour: (P, V, 3, H, W).
        opacity: (P, V, H, W).
        terms: the regularisers by name; each is computed when it is called.
    """

    colour: Tensor
    opacity: Tensor
    terms: Terms


class BakedRingViews:
    """All objects of a step, baked on a grid and seen from one ring of cameras.

    The step draws the ring, not a sample, so that micro-batches and processes share it.

    Args:
        rendering: its settings.
        radius: half the side of the fields' box.
        side: of a view, in pixels.
    """

    terms = ("sparsity", "opaque", "eikonal")

    def __init__(self, rendering: Rendering, radius: float, side: int) -> None:
        self.rendering, self.side, self.views = rendering, side, RING
        self.grid = Grid(rendering.resolution, radius)
        self.pool: BakedRings | None = None
        self.device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        """Prepare the pool of rings."""
        self.device = device
        self.grid.to(device)
        if self.rendering.rings:
            random = SampleRandom(STEADY_SEED, range(self.rendering.rings))
            starts, jitters = random.uniform("ring", (2,)), random.uniform("jitter", self._jitter_shape)
            rings = [ring_cameras(start).to(device) for start in starts]
            jitter = [one.float().to(device) for one in jitters]
            self.pool = BakedRings(rings, self.grid, self.side, self.side, self.rendering.samples, jitter)

    def draw(self, random: SampleRandom, step: int) -> BakedViews:
        """The ring of a step."""
        random = SampleRandom(random.seed, [step], random.device)
        if self.pool is not None:
            return self.pool[int(random.uniform("ring")[0] * len(self.pool))]  # type: ignore[no-any-return]
        jitter = random.uniform("jitter", self._jitter_shape)[0].float().to(self.device)
        cameras = ring_cameras(random.uniform("new_ring", (2,))[0]).to(self.device)
        return bake_views(cameras, self.grid, self.side, self.side, self.rendering.samples, jitter)

    def cameras(self, drawn: BakedViews, objects: int) -> Cameras:
        """The cameras of P objects, object after object."""
        return joined([drawn.cameras] * objects)

    def render(
        self, field: Field, drawn: BakedViews, sharpness: float, colour: Tensor, wanted: Collection[str], *_: Any
    ) -> ViewsShown:
        """Views of a field, on backgrounds of one colour (P, 3) each."""
        baked = bake(field, self.grid)
        made = render_baked(baked, drawn, sharpness, colour[:, None, :, None, None])
        terms: Terms = {**on_opacity(made.opacity), "eikonal": lambda: regularisers.eikonal(self._slopes(baked.sdf))}
        return ViewsShown(made.colour, made.opacity, terms)

    def shown(self, model: Any, prompts: Sequence[str], side: int) -> tuple[Tensor, Tensor]:
        """Four views of each prompt on white: colours (P, 4, 3, side, side) and opacities (P, 4, side, side)."""
        views = bake_views(validation_ring().to(self.device), self.grid, side, side, 64)
        made = render_baked(bake(model(prompts), self.grid), views, model.sharpness)
        return made.colour, made.opacity

    @property
    def _jitter_shape(self) -> tuple[int, ...]:
        return self.views, self.side, self.side, 1

    def _slopes(self, sdf: Tensor) -> Tensor:
        """Differences of a baked distance (N, P) along the edges of each cell from its first corner: (C, P, 3)."""
        corners = self.grid.corners.long()
        step = 2 * self.grid.radius / (self.grid.resolution - 1)
        first = sdf[corners[:, 0]]
        return torch.stack([sdf[corners[:, axis]] - first for axis in (1, 2, 4)], -1) / step


class DenseDrawn(NamedTuple):
    """The cameras of a step.

    Attributes:
        groups: for each object its V cameras.
        jitter: (P, V, side, side, 2) in [0, 1).
        plain: (P,) whether the background is a colour, where it may be a learned one.
    """

    groups: list[Cameras]
    jitter: Tensor
    plain: Tensor


class DenseViews:
    """Objects seen each from cameras of its own, with the field asked at every sample of every ray.

    Args:
        rendering: its settings; those below `dense` are read.
        teacher: the views of a row share elevation, distance and field of view. A teacher may need views of one size,
            or know certain cameras alone, which are then taken.

    Raises:
        UserError: the number of views is no multiple of that of the teacher, or the teacher is told a background that
            is learned.
    """

    terms = ("sparsity", "opaque", "eikonal", "orientation", "z_variance")

    def __init__(self, rendering: Rendering, teacher: ViewTeacher) -> None:
        dense = self.settings = rendering.dense
        self.teacher, self.joint, self.views = teacher, teacher.views, dense.views
        self.side = dense.size if teacher.side is None else teacher.side
        if self.views % self.joint:
            raise UserError(
                f"rendering.dense.views is {self.views}; the teacher denoises {self.joint} together, so it must be a "
                f"multiple of {self.joint}"
            )
        if teacher.told_background and dense.background == "learned":
            raise UserError(
                "rendering.dense.background is learned, but the prior is told one colour of it; set it to colour"
            )
        self.device = torch.device("cpu")
        self.renderer = Renderer(RenderSettings(dense.samples, dense.resampled, ray_chunk=dense.ray_chunk))

    def prepare(self, device: torch.device) -> None:
        """Keep the device."""
        self.device = device

    def draw(self, random: SampleRandom, step: int) -> DenseDrawn:
        """Cameras of each sample; the step changes nothing."""
        count = self.views // self.joint
        numbers, ranges = random.uniform("camera", (count, UNIFORMS)).float().cpu(), self.settings.cameras
        groups = []
        for one in numbers:
            drawn = ranges.draw(one) if self.joint == 1 else ranges.draw_rings(one, self.joint)
            own = [ring for row in one if (ring := self.teacher.cameras(row[:2])) is not None]
            groups.append(joined(own) if own else drawn)
        jitter = random.uniform("ray_jitter", (self.views, self.side, self.side, JITTERS)).float().to(self.device)
        plain = random.bernoulli("plain_background", self.settings.share_of_plain).to(self.device)
        return DenseDrawn([group.to(self.device) for group in groups], jitter, plain)

    def cameras(self, drawn: DenseDrawn, objects: int) -> Cameras:
        """The cameras of P objects, object after object."""
        return joined(drawn.groups)

    def render(
        self,
        field: Field,
        drawn: DenseDrawn,
        sharpness: float,
        colour: Tensor,
        wanted: Collection[str],
        learned: Any = None,
    ) -> ViewsShown:
        """Views of a field.

        Args:
            field: P objects.
            drawn: from `draw`.
            sharpness: k of the density.
            colour: of the backgrounds, (P, 3).
            wanted: names of the regularisers that will be called; samples are kept for these alone.
            learned: a network of the direction (..., 3), whose colours are taken where `drawn.plain` is false.
        """
        background = colour[:, None, :, None, None]
        if learned is not None:
            rays = torch.stack([group.rays(self.side, self.side).directions for group in drawn.groups])
            colours = background_colours(learned(rays).movedim(-1, 2), rays, len(rays))
            background = torch.where(drawn.plain.view(-1, 1, 1, 1, 1), background, colours)
        kept = {"eikonal", "orientation", "z_variance"} & set(wanted)
        made = self.renderer(
            field,
            drawn.groups,
            self.side,
            self.side,
            sharpness=sharpness,
            background=background,
            jitter=drawn.jitter,
            normals=bool(kept - {"z_variance"}),
            keep_samples=bool(kept),
        )
        terms = on_opacity(made.opacity)
        if made.samples is not None:
            terms |= _on_samples(made.samples)
        return ViewsShown(made.colour, made.opacity, terms)

    def shown(self, model: Any, prompts: Sequence[str], side: int) -> tuple[Tensor, Tensor]:
        """Four views of each prompt on white, one object after another; see `BakedRingViews.shown`."""
        ring = validation_ring().to(self.device)
        each = [self.renderer(model([p]), ring, side, side, sharpness=model.sharpness) for p in prompts]
        return torch.cat([made.colour for made in each]), torch.cat([made.opacity for made in each])


def _on_samples(samples: Samples) -> Terms:
    """The regularisers that read samples: means over objects, each of its own rays, so a batch may be divided."""
    objects = range(len(samples.weights))

    def own(of: Tensor, i: int) -> Tensor:
        """What belongs to the rays of object i that meet the box."""
        return of[min(i, len(of) - 1)][samples.hit[min(i, len(samples.hit) - 1)]]

    def mean(term: Callable[..., Tensor], *of: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.stack([term(*(own(part, i) for part in of)) for i in objects]).mean()

    terms = {"z_variance": mean(regularisers.z_variance, samples.weights, samples.places)}
    if (gradients := samples.gradients) is not None:
        terms["eikonal"] = mean(regularisers.eikonal, gradients)
        terms["orientation"] = mean(regularisers.orientation, samples.weights, gradients, samples.directions)
    return terms


def on_opacity(opacity: Tensor) -> Terms:
    """The regularisers that read opacities alone."""
    return {"sparsity": lambda: regularisers.sparsity(opacity), "opaque": lambda: regularisers.opaque(opacity)}


def validation_ring() -> Cameras:
    """The ring from which validation shows objects."""
    return ring_cameras(torch.tensor([0.1, 0.5]))


def joined(groups: Sequence[Cameras]) -> Cameras:
    """Cameras one group after another."""
    names = ("elevation_deg", "azimuth_deg", "distance", "fov_deg")
    return Cameras(*(torch.cat([getattr(group, name) for group in groups]) for name in names))
