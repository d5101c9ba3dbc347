"""How good the objects of a generator are, beside the true ones: the numbers that take seconds.

    prompts --model--> fields --24 reference views--> R@1, R-probability (judge network); PSNR to true renders
                          `--on a grid--> IoU with the true object; share of the box that is filled

Notable:
- no single number is enough. A classifier takes a mug without a handle for a mug, so R@1 is printed beside PSNR, IoU
  and the worst thing;
- an object is empty if its mean opacity is below 0.02 or its largest below 0.5, and diverged if the mean is above 0.6;
- an object with values that are not finite is shown black and opaque everywhere, so it counts as diverged;
- views are rendered by the baked path, on white, as the true renders of the same cameras are;
- objects are rendered on the device of their field. True renders and the judge stay on the CPU;
- what does not depend on the model is held by a `Ruler`, for measurements while a model is trained. With `QUICK` it
  takes 4 seconds of one core for 96 prompts. `text3d.evaluation` measures more, and writes a report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .baked import bake, render_baked
from .baked_views import BakedViews, Grid, bake_views
from .field import Field
from .generators.grid import sdf_on_grid
from .judge_network import JudgeNetwork, Retrieval
from .things.catalogue import COLOURS, Prompt
from .things.procedural import THINGS
from .things.true_field import TrueField
from .things.viewpoints import reference_views, view_cameras
from .things.views import Views

EMPTY_MEAN, EMPTY_MOST, DIVERGED_MEAN = 0.02, 0.5, 0.6
MORE_THAN_TRUE = 0.1  # of the views: a true ball covers .71 of them, and so does a right one
NOT_WHITE = 0.02
LEAST_ERROR = 1e-10  # mean squared, which is 100 dB


@dataclass(frozen=True)
class MeasureSettings:
    """How objects are measured.

    Args:
        resolution: nodes of the baked grid along a side.
        samples: along each ray.
        volume: nodes along a side at which the volumes of objects are compared.
        at_once: objects that are held at once.

    Raises:
        UserError: a number is out of its range.
    """

    resolution: int = 48
    samples: int = 64
    volume: int = 64
    at_once: int = 8

    def __post_init__(self) -> None:
        if min(self.resolution, self.volume) < 4 or min(self.samples, self.at_once) < 1:
            raise UserError(
                f"resolution is {self.resolution}, volume {self.volume}, samples {self.samples} and at_once "
                f"{self.at_once}; the first two must be 4 or more, the others 1 or more"
            )


QUICK = MeasureSettings(resolution=32, samples=32, volume=32)


class Maker(Protocol):
    """What makes objects of prompts, such as `model.TextTo3DModel`.

    Attributes:
        sharpness: k of the density with which its fields are rendered.
    """

    sharpness: float

    def __call__(self, prompts: Sequence[str], noise: Tensor | None = None) -> Field:
        """Objects of P prompts; noise is (P, Z) for a maker that takes noise."""


class Shown(NamedTuple):
    """Reference views of objects.

    Attributes:
        images: (P, 24, 3, S, S) in [0, 1], on white.
        opacity: (P, 24, S, S).
    """

    images: Tensor
    opacity: Tensor


class Ruler:
    """True renders, true volumes, cameras and a judge, which are prepared once for many measurements.

    Args:
        views: the true renders.
        judge: the classifier; its prompts are the candidates of retrieval.
        settings: how objects are measured.
    """

    def __init__(self, views: Views, judge: JudgeNetwork, settings: MeasureSettings = MeasureSettings()) -> None:  # noqa: B008
        self.views, self.judge, self.settings = views, judge, settings
        self._baked: BakedViews | None = None
        self._true: dict[tuple[str, float], Tensor] = {}  # signed distances (R, R, R) of procedural things

    @torch.no_grad()
    def show(self, field: Field, sharpness: float) -> Shown:
        """Objects from the 24 reference cameras, in the size of the views."""
        wanted, views = (field.radius, _device(field)), self._baked
        if views is None or (views.grid.radius, views.places.device) != wanted:
            views = self._baked = _reference_cameras(field, self.views.size, self.settings)
        return _shown(field, views, sharpness)

    def truth(self, prompts: Sequence[Prompt]) -> Tensor:
        """The true renders from the same cameras, (P, 24, 3, S, S) in [0, 1], on white."""
        return self.views.references(self.views.indexes(prompts)).images

    def retrieval(self, prompt: Prompt, images: Tensor) -> Retrieval:
        """How well images (N, 3, S, S) of a prompt are found among all prompts of the judge.

        Raises:
            UserError: the judge was not trained on such prompts.
        """
        return self.judge.retrieval(images, torch.full((len(images),), self.number(prompt)))

    def number(self, prompt: Prompt) -> int:
        """The place of a prompt among the candidates.

        Raises:
            UserError: it is not among them.
        """
        if prompt not in self.judge.prompts:
            known = ", ".join(self.judge.things)
            raise UserError(f"the judge does not know {str(prompt)!r}; it was trained on {known}; name another judge")
        return self.judge.prompts.index(prompt)

    def numbers(self, prompt: Prompt, images: Tensor, opacity: Tensor, truth: Tensor) -> dict[str, Any]:
        """What the views (24, 3, S, S) of one object say; see `measured`."""
        retrieval = self.retrieval(prompt, images)
        mean, most = float(opacity.mean()), float(opacity.max())
        covered = float(((1 - truth).amax(1) > NOT_WHITE).float().mean())
        return {
            "prompt": str(prompt),
            "thing": prompt.thing,
            "colour": prompt.colour,
            "recall_at_1": retrieval.recall_at_1,
            "r_probability": retrieval.mean_probability,
            "psnr_db": psnr_db(images, truth),
            "opacity": mean,
            "empty": mean < EMPTY_MEAN or most < EMPTY_MOST,
            "diverged": mean > max(DIVERGED_MEAN, covered + MORE_THAN_TRUE),
        }

    def volume(self, field: Field) -> Tensor:
        """Signed distances (P, R, R, R) at which volumes are compared, R being `settings.volume`."""
        with torch.no_grad():
            return sdf_on_grid(field, self.settings.volume).cpu()

    def true_volume(self, prompt: Prompt, radius: float = 1.0) -> Tensor | None:
        """What `volume` gives of the true object in a box of half side `radius`, (R, R, R).

        None for a thing without a true object, such as a real 3D model.
        """
        if not self._has_field(prompt):
            return None
        if (key := (prompt.thing, radius)) not in self._true:  # colours do not change it
            self._true[key] = self.volume(_true_field([Prompt(prompt.thing, next(iter(COLOURS)))], radius))[0]
        return self._true[key]

    def _has_field(self, prompt: Prompt) -> bool:
        return prompt.colour is not None and prompt.thing in THINGS and self.views.is_procedural(prompt.thing)

    @torch.no_grad()
    def true_psnr(self, prompt: Prompt, sharpness: float, radius: float) -> float | None:
        """PSNR in dB of the true object's field, rendered as objects of that sharpness are: the most that is possible.

        None where there is no true field.
        """
        if not self._has_field(prompt):
            return None
        return psnr_db(self.show(_true_field([prompt], radius), sharpness).images[0], self.truth([prompt])[0])

    def iou(self, sdf: Tensor, prompt: Prompt, radius: float = 1.0) -> float | None:
        """Intersection over union of one object (R, R, R), from `volume`, with the true one; None if there is none.

        Args:
            sdf: of the object, on the grid of a box of half side `radius`.
        """
        true = self.true_volume(prompt, radius)
        return None if true is None else _iou(sdf < 0, true < 0)

    @torch.no_grad()
    def rows(self, model: Maker, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """One row a prompt; see `measured`."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(prompts), self.settings.at_once):
            part = prompts[start : start + self.settings.at_once]
            field = model([str(prompt) for prompt in part])
            shown, truth, volumes = self.show(field, model.sharpness), self.truth(part), self.volume(field)
            for i, prompt in enumerate(part):
                row = self.numbers(prompt, shown.images[i], shown.opacity[i], truth[i])
                if (iou := self.iou(volumes[i], prompt, field.radius)) is not None:
                    row["iou"] = iou
                rows.append(row)
        return rows


def measured(
    model: Maker,
    prompts: Sequence[Prompt],
    views: Views,
    judge: JudgeNetwork,
    settings: MeasureSettings = MeasureSettings(),  # noqa: B008
) -> list[dict[str, Any]]:
    """One row a prompt: recall_at_1 and r_probability (means over 24 views), psnr_db, iou, opacity, empty, diverged.

    Args:
        model: the model.
        prompts: of things that `views` holds.
        views: the true renders; `iou` is there only for procedural things.
        judge: the classifier; its prompts are the candidates.
        settings: how.

    Raises:
        UserError: a prompt that the views, the judge or the model does not know.
    """
    return Ruler(views, judge, settings).rows(model, prompts)


@torch.no_grad()
def reference_renders(
    field: Field,
    size: int,
    sharpness: float,
    settings: MeasureSettings = MeasureSettings(),  # noqa: B008
) -> Shown:
    """Objects from the 24 reference cameras, (P, 24, 3, size, size)."""
    return _shown(field, _reference_cameras(field, size, settings), sharpness)


def iou_of(field: Field, prompts: Sequence[Prompt], resolution: int = 64) -> Tensor | None:
    """Intersection over union of objects with the true ones, (P,); None if a prompt has no true field."""
    try:
        true = _true_field(prompts, field.radius)
    except UserError:
        return None
    made, wanted = (sdf_on_grid(of, resolution) < 0 for of in (field, true))
    return torch.tensor([_iou(*pair) for pair in zip(made, wanted, strict=True)], dtype=torch.float64)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts, counts of empty and diverged objects, and the mean of each thing with the worst one first.

    The worst thing is the one of the least mean IoU, or of the least mean PSNR where a row has no IoU.
    """
    keys = ("recall_at_1", "r_probability", "psnr_db", "iou", "opacity")
    names = [name for name in keys if all(name in row for row in rows)]
    means: dict[str, Any] = {name: _mean(rows, name) for name in names}
    means |= {name: sum(row[name] for row in rows) for name in ("empty", "diverged")}
    things: dict[str, dict[str, float]] = {}
    for thing in dict.fromkeys(row["thing"] for row in rows):
        things[thing] = {name: _mean([row for row in rows if row["thing"] == thing], name) for name in names}
    worst = "iou" if "iou" in names else "psnr_db"
    return {"prompts": len(rows), **means, "things": dict(sorted(things.items(), key=lambda item: item[1][worst]))}


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows) / len(rows))


def _device(field: Field) -> torch.device:
    """Where a field is asked: where it says it is, or else on the CPU."""
    return torch.device(getattr(field, "device", None) or "cpu")


def _reference_cameras(field: Field, size: int, settings: MeasureSettings) -> BakedViews:
    device = _device(field)
    grid = Grid(settings.resolution, field.radius).to(device)
    return bake_views(view_cameras(*reference_views()).to(device), grid, size, size, settings.samples)


def _shown(field: Field, views: BakedViews, sharpness: float) -> Shown:
    made = render_baked(bake(field, views.grid), views, sharpness)
    images, opacity = made.colour.clamp(0, 1).cpu(), made.opacity.cpu()
    bad = ~(images.flatten(1).isfinite().all(1) & opacity.flatten(1).isfinite().all(1))
    images[bad], opacity[bad] = 0.0, 1.0
    return Shown(images, opacity)


def _true_field(prompts: Sequence[Prompt], radius: float) -> TrueField:
    """The true field, asked in a box of half side `radius`."""
    field = TrueField(prompts)
    field.radius = radius
    return field


def psnr_db(images: Tensor, truth: Tensor) -> float:
    """PSNR of images in [0, 1] beside others of the same shape, all together, in dB; at most 100."""
    error = max(float((images - truth).square().mean()), LEAST_ERROR)
    return float(-10 * torch.log10(torch.tensor(error)))


def _iou(made: Tensor, true: Tensor) -> float:
    return float((made & true).sum()) / max(1.0, float((made | true).sum()))
