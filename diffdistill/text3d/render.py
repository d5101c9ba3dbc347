"""Images of objects: rays of cameras, samples along them, the field asked at each, and sums.

    cameras -> rays -> [near, far] in the box -> S intervals -> (n more, where the weights are) -> field -> image

Notable:
- all P objects are rendered at once, from cameras that they share or from cameras of their own;
- rays are rendered in chunks, and each chunk is computed anew in the backward pass, so that memory is that of a chunk;
- rays that miss the box cost nothing;
- nothing is drawn here: the caller passes the uniform numbers that jitter the samples;
- normals are the exact gradient where none of a loss is recorded: it takes a third of the time of finite differences,
  measured with a small network. In training the two take the same (88 and 99 ms), and finite differences are the
  default, since fields that sample planes or voxels cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffdistill.errors import UserError, shown
from diffdistill.text3d import volume
from diffdistill.text3d.background import Background, background_colours, over
from diffdistill.text3d.cameras import Cameras, Rays, Region, interval, require_sight
from diffdistill.text3d.field import Field

JITTERS = 2  # uniform numbers that a ray takes: for its intervals, and for those that are added


@dataclass(frozen=True)
class RenderSettings:
    """How images are made.

    Attributes:
        samples: S, intervals of each ray.
        resampled: n, places that are added where the weights of those are, 0 for none. ScaleDreamer has 128 and 64.
        sharpness: k of the density (`volsdf_density`), in 1 / units of the box. In a box of half-side 1, 60 or more;
            k = 30 belongs to a box of half-side 2.
        ray_chunk: rays that are rendered at once, of each object.
        region: "box", or "ball": nothing outside of the ball in the box is seen.
        background: three numbers in [0, 1], where a call gives none.
        normals: "differences" (forward, three more signed distances a sample); "analytic" (automatic differentiation;
            to train, the field must be differentiable twice); or "auto", differences where gradients are recorded and
            analytic where not.
        step: of the differences, in the units of the box. Normals on a sphere are off by step / (2 radius).
        compositing: "auto", "own" or "nerfacc"; see `volume.compositing`.
    """

    samples: int = 64
    resampled: int = 0
    sharpness: float = 60.0
    ray_chunk: int = 1 << 14
    region: Region = "box"
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    normals: Literal["auto", "differences", "analytic"] = "auto"
    step: float = 0.01
    compositing: volume.Backend = "auto"

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("resampled", 0), ("ray_chunk", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} of the renderer is {getattr(self, name)}; it must be {least} or more")
        for name in ("sharpness", "step"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} of the renderer is {getattr(self, name):g}; it must be above 0")
        for name, known in (("region", ("box", "ball")), ("normals", ("auto", "differences", "analytic"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name} of the renderer is {shown(getattr(self, name))}; it must be one of {known}")
        if len(self.background) != 3 or not all(0 <= value <= 1 for value in self.background):
            raise UserError(f"background of the renderer is {self.background}; it must be three numbers in [0, 1]")


class Samples(NamedTuple):
    """What was met along N rays, for regularisers; G is 1 where all objects share the samples.

    With cameras of their own, the N rays are those that meet the box for any object; see `hit`.

    Attributes:
        weights: (P, N, S).
        places: (P or G, N, S), distances t along the rays.
        directions: (G, N, 3).
        gradients: (P, N, S, 3) of the signed distance, or None where normals were not asked for.
        hit: (G, N), whether a ray meets the box. The samples of one that does not lie outside and mean nothing.
    """

    weights: Tensor
    places: Tensor
    directions: Tensor
    gradients: Tensor | None
    hit: Tensor


class Rendered(NamedTuple):
    """Images of P objects from V cameras.

    Attributes:
        colour: (P, V, 3, H, W), about in [0, 1].
        opacity: (P, V, H, W) in [0, 1].
        depth: (P, V, H, W), sum of weights times distances: not divided by the opacity, 0 where nothing is.
        normals: (P, V, 3, H, W), sum of weights times normals of length 1, in the world's axes; or None.
        samples: or None; see `Samples`.
    """

    colour: Tensor
    opacity: Tensor
    depth: Tensor
    normals: Tensor | None = None
    samples: Samples | None = None


class Renderer:
    """Renders fields by asking them at every sample.

    Args:
        settings: None for the default.
    """

    def __init__(self, settings: RenderSettings | None = None) -> None:
        self.settings = settings or RenderSettings()
        self._compositing = volume.compositing(self.settings.compositing)

    def __call__(
        self,
        field: Field,
        cameras: Cameras | Sequence[Cameras],
        height: int,
        width: int,
        *,
        sharpness: float | Tensor | None = None,
        background: Background | None = None,
        jitter: Tensor | None = None,
        normals: bool = False,
        keep_samples: bool = False,
    ) -> Rendered:
        """Images of all objects of a field.

        Args:
            field: P objects.
            cameras: V cameras for all objects; or P times V cameras, one `Cameras` for each object.
            height: H, pixels.
            width: W, pixels.
            sharpness: k; None for that of the settings.
            background: see `background_colours`; None for that of the settings.
            jitter: uniform in [0, 1), (V, H, W, 2), or (P, V, H, W, 2) for cameras of their own; None for even samples.
            normals: whether to make them.
            keep_samples: whether to return what the regularisers need. It takes memory for all rays, not for a chunk.

        Raises:
            UserError: a camera does not see the box, the numbers of cameras differ, or a shape does not fit.
        """
        objects = len(field)
        groups = [cameras] if isinstance(cameras, Cameras) else list(cameras)
        if len(groups) not in (1, objects) or len({len(group) for group in groups}) != 1:
            raise UserError(
                f"{objects} objects are rendered from {[len(group) for group in groups]} cameras; give one Cameras for "
                "all objects, or one for each, of equal numbers"
            )
        rays = Rays(
            *(torch.stack(parts) for parts in zip(*(group.rays(height, width) for group in groups), strict=True))
        )
        found = interval(rays, field.radius, self.settings.region)
        for group, hit in zip(groups, found.hit, strict=True):
            require_sight(group, hit, field.radius)
        shape = found.hit.shape
        if jitter is not None and jitter.shape not in (shape + (JITTERS,), shape[1:] + (JITTERS,)):
            raise UserError(f"jitter is {tuple(jitter.shape)}; it must be {(*shape[1:], JITTERS)}")
        hits = found.hit.flatten(1).any(0).nonzero()[:, 0]
        parts = [x.flatten(1, 3) for x in (*rays, found.near, found.far)]
        if jitter is not None:
            parts.append(jitter.expand(*shape, JITTERS).flatten(1, 3))
        chunks = hits.split(self.settings.ray_chunk)
        made: list[dict[str, Tensor]] = []
        for chunk in chunks:
            given = [part.index_select(1, chunk) for part in parts]
            how = (field, self.settings.sharpness if sharpness is None else sharpness, normals, keep_samples)
            if len(chunks) > 1 and torch.is_grad_enabled():
                made.append(checkpoint(self._chunk, *how, *given, use_reentrant=False))
            else:
                made.append(self._chunk(*how, *given))
        sums = {name: torch.cat([part[name] for part in made], 1) for name in made[0]}

        def image(values: Tensor) -> Tensor:
            whole = values.new_zeros(objects, shape[1:].numel(), *values.shape[2:]).index_copy(1, hits, values)
            whole = whole.unflatten(1, shape[1:])
            return whole.movedim(-1, 2) if values.dim() == 3 else whole

        behind = self.settings.background if background is None else background
        opacity = image(sums["opacity"])
        kept = None
        if keep_samples:
            directions = parts[1].index_select(1, hits)
            kept = Samples(
                sums["weights"],
                sums["places"],
                directions,
                sums.get("gradients"),
                found.hit.flatten(1).index_select(1, hits),
            )
        return Rendered(
            over(image(sums["colour"]), opacity, background_colours(behind, rays.directions, objects)),
            opacity,
            image(sums["depth"]),
            image(sums["normals"]) if normals else None,
            kept,
        )

    def _chunk(
        self,
        field: Field,
        sharpness: float | Tensor,
        normals: bool,
        keep_samples: bool,
        origins: Tensor,
        directions: Tensor,
        near: Tensor,
        far: Tensor,
        jitter: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Sums along n rays, and what is to be kept of their samples; arguments from `origins` on are (G, n, ..)."""
        settings, objects = self.settings, len(field)
        shared, added = (None, None) if jitter is None else jitter.split(1, -1)

        def at(places: Tensor) -> Tensor:
            points = origins[:, :, None] + places[..., None] * directions[:, :, None]
            return points.flatten(1, 2)

        edges = volume.stratified_edges(near, far, settings.samples, shared)
        if settings.resampled:
            with torch.no_grad():
                sdf = field.sdf(at(volume.middles(edges))).view(objects, near.shape[1], -1).to(edges.dtype)
                weights = self._compositing.weights(volume.volsdf_density(sdf, sharpness), edges)
                more = volume.resampled_edges(edges, weights, settings.resampled, added)
                edges = volume.merged_edges(edges.expand(objects, -1, -1), more)
        places = volume.middles(edges)
        sdf, colours, gradients = self._values(field, at(places), normals)
        shape = (objects, *places.shape[1:])
        density = volume.volsdf_density(sdf.view(shape).to(places.dtype), sharpness)  # whatever networks answer in
        weights = self._compositing.weights(density, edges)
        made = {
            "colour": self._compositing.accumulate(weights, colours.view(*shape, 3).to(places.dtype)),
            "opacity": weights.sum(-1),
            "depth": (weights * places).sum(-1),
        }
        kept = {"weights": weights, "places": places}
        if gradients is not None:
            kept["gradients"] = gradients.view(*shape, 3)
            unit = torch.nn.functional.normalize(kept["gradients"], dim=-1)
            made["normals"] = self._compositing.accumulate(weights, unit)
        return {**made, **kept} if keep_samples else made

    def _values(self, field: Field, points: Tensor, normals: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Signed distances (P, N), colours (P, N, 3) and perhaps gradients (P, N, 3) at points (P or 1, N, 3)."""
        if not normals:
            return (*field(points), None)
        trained = torch.is_grad_enabled()
        if self.settings.normals == "differences" or (self.settings.normals == "auto" and trained):
            sdf, colours = field(points)
            steps = self.settings.step * torch.eye(3, device=points.device, dtype=points.dtype)
            moved = (points[:, None] + steps[:, None]).flatten(1, 2)
            ahead = field.sdf(moved).view(len(field), 3, -1)
            return sdf, colours, ((ahead - sdf[:, None]) / self.settings.step).transpose(1, 2)
        with torch.enable_grad():
            own = points.detach().expand(len(field), -1, -1).clone().requires_grad_()  # one for each object
            sdf, colours = field(own)
            (gradients,) = torch.autograd.grad(sdf.sum(), own, create_graph=trained)
        return (sdf, colours, gradients) if trained else (sdf.detach(), colours.detach(), gradients.detach())
