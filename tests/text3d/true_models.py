"""Stand-ins for text-to-3D models and for their judge, of which one knows what every measure must say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.text3d.field import Field, FieldValues
from diffdistill.text3d.judge_network import JudgeNetwork
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.rendering import RenderSettings, procedural_views
from diffdistill.text3d.things.true_field import TrueField
from diffdistill.text3d.things.view_files import ThingViews
from diffdistill.text3d.things.views import Views


@cache
def thing(name: str) -> ThingViews:
    return procedural_views(name, RenderSettings(32, 1, 1, 1, seed=1))


def views_of(*names: str) -> Views:
    return Views([thing(name) for name in names])


def prompt_of(text: str) -> Prompt:
    """
    >>> prompt_of("a red mug")
    Prompt(thing='mug', colour='red')
    """
    _, colour, name = text.split()
    return Prompt(name, colour)


class Model:
    """A function of prompts as a model."""

    def __init__(self, make: Callable[[list[Prompt]], Field], sharpness: float = 200.0) -> None:
        self.make, self.sharpness, self.asked = make, sharpness, 0

    def __call__(self, prompts: Sequence[str], noise: Tensor | None = None) -> Field:
        self.asked += len(prompts)
        return self.make([prompt_of(text) for text in prompts])


class Everywhere:
    """P objects with one signed distance in the whole box."""

    radius = 1.0

    def __init__(self, count: int, distance: float) -> None:
        self.count, self.distance = count, distance

    def __len__(self) -> int:
        return self.count

    def sdf(self, points: Tensor) -> Tensor:
        return torch.full((self.count, points.shape[1]), self.distance)

    def __call__(self, points: Tensor) -> FieldValues:
        return FieldValues(self.sdf(points), torch.full((self.count, points.shape[1], 3), 0.5))


class TwoFaced(TrueField):
    """True objects, and each once more, turned by half a turn around the upright axis."""

    def _turned(self, points: Tensor) -> tuple[FieldValues, FieldValues]:
        return super().__call__(points), super().__call__(points * torch.tensor([-1.0, -1.0, 1.0]))

    def sdf(self, points: Tensor) -> Tensor:
        return torch.minimum(super().sdf(points), super().sdf(points * torch.tensor([-1.0, -1.0, 1.0])))

    def __call__(self, points: Tensor) -> FieldValues:
        one, other = self._turned(points)
        nearer = (one.sdf <= other.sdf)[..., None]
        return FieldValues(torch.minimum(one.sdf, other.sdf), torch.where(nearer, one.colour, other.colour))


class NearestJudge(JudgeNetwork):
    """It finds the true render that is nearest to a view, among those of all prompts and from all cameras."""

    def __init__(self, views: Views) -> None:
        super().__init__(views.names)
        own = views.references(views.indexes(self.prompts)).images
        self.register_buffer("known", own.flatten(2).flatten(0, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        near = torch.cdist(images.flatten(1), self.known).unflatten(1, (-1, 24)).amin(2).argmin(1)
        thing, colour = near // len(COLOURS), near % len(COLOURS)
        shares = F.one_hot(thing, len(self.things)), F.one_hot(colour, len(COLOURS))
        likely, other = (0.98 * share.float() + 0.01 for share in shares)
        return likely.log_softmax(1), other.log_softmax(1)
