"""Renders the views of one thing, as they are stored.

Notable:
- the random numbers of a thing follow from the seed and its name alone, so things can be rendered in any order;
- the rings of a procedural thing show several instances of it, one after another. Its reference views show the mean
  instance, with 3 x 3 rays a pixel;
- a 3D model has one instance, and all of its views are made of the same points.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things.archive import FurnitureArchive
from diffdistill.text3d.things.models3d import MODELS, luma_of_white, model_points
from diffdistill.text3d.things.procedural import JITTERS, THINGS, mean_instance
from diffdistill.text3d.things.sphere_tracing import traced_views
from diffdistill.text3d.things.splatting import cell_area, splatted_views
from diffdistill.text3d.things.view_files import MAX_SIZE, ThingViews, most_rings
from diffdistill.text3d.things.viewpoints import reference_views, ring_starts, ring_views

REFERENCE_SUPERSAMPLING = 3
POINTS_OF_A_CELL = 8
_CHUNK = 48  # views that are rendered at once


@dataclass(frozen=True)
class RenderSettings:
    """How things are rendered.

    Args:
        size: side of a view in pixels, a multiple of 8.
        instances: of a procedural thing; of a 3D model its rings are counted as if there were so many.
        rings: of each instance.
        supersampling: rays along a side of a pixel, in the rings of procedural things.
        seed: of instances and rings.

    Raises:
        UserError: a number is out of its range.
    """

    size: int = 32
    instances: int = 8
    rings: int = 6
    supersampling: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size % 8 or not 8 <= self.size <= MAX_SIZE:
            raise UserError(f"size is {self.size}; it must be a multiple of 8, from 8 to {MAX_SIZE}")
        if self.instances < 1 or self.rings < 1 or self.instances * self.rings > most_rings(self.size):
            raise UserError(
                f"there are {self.instances} instances with {self.rings} rings; both must be 1 or more, and their "
                f"product at most {most_rings(self.size)} at {self.size} pixels"
            )
        if not 1 <= self.supersampling <= 8:
            raise UserError(f"supersampling is {self.supersampling}; it must be in [1, 8]")
        if not 0 <= self.seed < 1 << 31:
            raise UserError(f"seed is {self.seed}; it must be in [0, 2^31)")


def procedural_views(name: str, settings: RenderSettings) -> ThingViews:
    """The views of a procedural thing.

    Args:
        name: a key of `THINGS`.
        settings: how it is rendered.

    Raises:
        UserError: there is no such thing.
    """
    if name not in THINGS:
        raise UserError(f"there is no thing {name!r}; the things are {', '.join(THINGS)}")
    thing, generator = THINGS[name], _generator(settings.seed, name)
    azimuth, elevation, rings = [], [], []
    for _ in range(settings.instances):
        instance = torch.rand(JITTERS, generator=generator)
        starts = ring_starts(torch.rand(settings.rings, 2, generator=generator))
        around, above = (angles.flatten() for angles in ring_views(*starts))
        made = [
            _as_bytes(traced_views(thing, instance, a, e, settings.size, settings.supersampling))
            for a, e in zip(around.split(_CHUNK), above.split(_CHUNK), strict=True)
        ]
        rings.append(torch.cat(made).unflatten(0, (settings.rings, -1)))
        azimuth.append(starts[0])
        elevation.append(starts[1])
    references = traced_views(thing, mean_instance(), *reference_views(), settings.size, REFERENCE_SUPERSAMPLING)
    return ThingViews(
        name,
        "shades",
        torch.cat(rings),
        _as_bytes(references),
        torch.cat(azimuth),
        torch.cat(elevation),
        companion=thing.companion,
        source={"renderer": "sphere tracing", "seed": settings.seed, "instances": settings.instances},
    )


def model_views(archive: FurnitureArchive, name: str, settings: RenderSettings, origin: dict[str, Any]) -> ThingViews:
    """The views of a real 3D model.

    Args:
        archive: the library that holds it.
        name: a key of `MODELS`.
        settings: how it is rendered; supersampling is 3.
        origin: what is noted of the archive, such as its hash.

    Raises:
        UserError: the model is not there, is damaged, or is black.
    """
    size, generator = settings.size, _generator(settings.seed, name)
    density = POINTS_OF_A_CELL / cell_area(size, REFERENCE_SUPERSAMPLING)
    points = model_points(archive, name, density, settings.seed)
    starts = ring_starts(torch.rand(settings.instances * settings.rings, 2, generator=generator))
    around, above = (angles.flatten() for angles in ring_views(*starts))
    made = [
        _as_bytes(splatted_views(points, a, e, size, REFERENCE_SUPERSAMPLING))
        for a, e in zip(around.split(_CHUNK), above.split(_CHUNK), strict=True)
    ]
    references = splatted_views(points, *reference_views(), size, REFERENCE_SUPERSAMPLING)
    entry = archive.entries[MODELS[name]]
    return ThingViews(
        name,
        "colours",
        torch.cat(made).unflatten(0, (len(starts[0]), -1)),
        _as_bytes(references),
        *starts,
        white=luma_of_white(references),
        source={"renderer": "splatting", "seed": settings.seed, "model": entry.model, "creator": entry.creator}
        | origin,
    )


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))  # of a seed, 32 bits are used


def _as_bytes(views: Tensor) -> Tensor:
    return (views * 255).round().to(torch.uint8)
