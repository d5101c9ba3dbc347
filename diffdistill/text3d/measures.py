"""How good the objects of a generator are, beside the true ones.

    prompts --model--> fields --24 reference views--> R@1, R-probability (judge network); PSNR to true renders
                          `--on a grid--> IoU with the true object; share of the box that is filled

Notable:
- no single number is enough. A classifier takes a mug without a handle for a mug, so R@1 is printed beside PSNR, IoU
  and the worst thing;
- an object is empty if its mean opacity is below 0.02 or its largest below 0.5, and diverged if the mean is above 0.6;
- views are rendered by the baked path, on white, as the true renders of the same cameras are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .baked import bake, render_baked
from .baked_views import Grid, bake_views
from .field import Field
from .generators.grid import sdf_on_grid
from .judge_network import JudgeNetwork
from .model import TextTo3DModel
from .things.catalogue import Prompt
from .things.true_field import TrueField
from .things.viewpoints import reference_views, view_cameras
from .things.views import Views

EMPTY_MEAN, EMPTY_MOST, DIVERGED_MEAN = 0.02, 0.5, 0.6


@dataclass(frozen=True)
class MeasureSettings:
    """How objects are measured.

    Args:
        resolution: nodes of the baked grid along a side.
        samples: along each ray.
        volume: nodes along a side at which the volumes of objects are compared.
        at_once: objects that are held at once.
    """

    resolution: int = 48
    samples: int = 64
    volume: int = 64
    at_once: int = 8


class Shown(NamedTuple):
    """Reference views of objects.

    Attributes:
        images: (P, 24, 3, S, S) in [0, 1], on white.
        opacity: (P, 24, S, S).
    """

    images: Tensor
    opacity: Tensor


@torch.no_grad()
def reference_renders(
    field: Field, size: int, sharpness: float, settings: MeasureSettings = MeasureSettings()
) -> Shown:
    """Objects from the 24 reference cameras, (P, 24, 3, size, size)."""
    grid = Grid(settings.resolution, field.radius)
    views = bake_views(view_cameras(*reference_views()), grid, size, size, settings.samples)
    made = render_baked(bake(field, grid), views, sharpness)
    return Shown(made.colour.clamp(0, 1), made.opacity)


@torch.no_grad()
def measured(
    model: TextTo3DModel,
    prompts: Sequence[Prompt],
    views: Views,
    judge: JudgeNetwork,
    settings: MeasureSettings = MeasureSettings(),
) -> list[dict[str, Any]]:
    """One row a prompt: recall_at_1 and r_probability (means over 24 views), psnr_db, iou, opacity, empty, diverged.

    Args:
        model: the model.
        prompts: of things that `views` holds.
        views: the true renders; `iou` is there only for procedural things.
        judge: the classifier; its prompts are the candidates.
        settings: how.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(prompts), settings.at_once):
        part = prompts[start : start + settings.at_once]
        field = model([str(prompt) for prompt in part])
        shown = reference_renders(field, views.size, model.sharpness, settings)
        truth = views.references(views.indexes(part)).images
        found = iou_of(field, part, settings.volume)
        for i, prompt in enumerate(part):
            index = torch.full((len(shown.images[i]),), judge.prompts.index(prompt))
            retrieval = judge.retrieval(shown.images[i], index)
            error = float((shown.images[i] - truth[i]).square().mean())
            mean, most = float(shown.opacity[i].mean()), float(shown.opacity[i].max())
            rows.append(
                {
                    "prompt": str(prompt),
                    "thing": prompt.thing,
                    "colour": prompt.colour,
                    "recall_at_1": retrieval.recall_at_1,
                    "r_probability": retrieval.mean_probability,
                    "psnr_db": float(-10 * torch.log10(torch.tensor(max(error, 1e-10)))),
                    **({} if found is None else {"iou": float(found[i])}),
                    "opacity": mean,
                    "empty": mean < EMPTY_MEAN or most < EMPTY_MOST,
                    "diverged": mean > DIVERGED_MEAN,
                }
            )
    return rows


def iou_of(field: Field, prompts: Sequence[Prompt], resolution: int = 64) -> Tensor | None:
    """Intersection over union of objects with the true ones, (P,); None if a prompt has no true field."""
    try:
        true = TrueField(prompts)
    except UserError:
        return None
    made, wanted = (sdf_on_grid(of, resolution) < 0 for of in (field, true))
    both, either = (a.flatten(1).sum(1).double() for a in (made & wanted, made | wanted))
    return both / either.clamp_min(1)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts, counts of empty and diverged objects, and the mean of each thing with the worst one first."""
    names = [name for name in ("recall_at_1", "r_probability", "psnr_db", "iou", "opacity") if name in rows[0]]
    means: dict[str, Any] = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    means |= {name: sum(row[name] for row in rows) for name in ("empty", "diverged")}
    things: dict[str, dict[str, float]] = {}
    for thing in dict.fromkeys(row["thing"] for row in rows):
        own = [row for row in rows if row["thing"] == thing]
        things[thing] = {name: sum(row[name] for row in own) / len(own) for name in names}
    worst = "iou" if "iou" in names else "psnr_db"
    return {"prompts": len(rows), **means, "things": dict(sorted(things.items(), key=lambda item: item[1][worst]))}
