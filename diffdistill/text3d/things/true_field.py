"""The true objects of prompts as a `Field`: what a generator should make of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.field import FieldValues
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.procedural import THINGS, Parts, mean_instance
from diffdistill.text3d.things.sphere_tracing import normals
from diffdistill.text3d.things.viewpoints import shade


class TrueField:
    """Procedural things in their colours, in the light of the views.

    A point that lies off the surface has the colour of the nearer part.

    Args:
        prompts: P prompts with a colour, of procedural things.
        instances: (P, JITTERS) in [0, 1]; by default the mean instance of each.
        lit: whether colours are multiplied by the shade of the surface, as they are in the views.

    Raises:
        UserError: a thing is not procedural, a prompt has no colour, or there is another number of instances.
    """

    radius = 1.0  # things lie in the box of this half side; a field may have a larger one

    def __init__(self, prompts: Sequence[Prompt], instances: Tensor | None = None, lit: bool = True) -> None:
        for prompt in prompts:
            if prompt.thing not in THINGS or prompt.colour is None:
                raise UserError(f"{str(prompt)!r} has no true field; it takes a colour and one of {', '.join(THINGS)}")
        if instances is not None and len(instances) != len(prompts):
            raise UserError(f"there are {len(instances)} instances for {len(prompts)} prompts")
        self._prompts, self._lit = tuple(prompts), lit
        self._instances = mean_instance().expand(len(prompts), -1) if instances is None else instances

    def __len__(self) -> int:
        return len(self._prompts)

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distances (P, N) at points (P, N, 3) or (1, N, 3); exact outside."""
        return torch.stack([torch.minimum(*self._parts(p, at)) for p, at in enumerate(self._points(points))])

    def __call__(self, points: Tensor) -> FieldValues:
        """Signed distances (P, N), and colours (P, N, 3) in [0, 1]."""
        distances, colours = [], []
        for p, at in enumerate(self._points(points)):
            prompt, parts = self._prompts[p], self._parts(p, at)
            pair = [COLOURS[prompt.colour or ""], THINGS[prompt.thing].companion]
            main, second = torch.tensor(pair, device=at.device)
            colour = torch.where((parts.main <= parts.second)[:, None], main, second)
            if self._lit:
                colour = colour * shade(self._normals(p, at))[:, None]
            distances.append(torch.minimum(*parts))
            colours.append(colour)
        return FieldValues(torch.stack(distances), torch.stack(colours))

    def _points(self, points: Tensor) -> Tensor:
        return points.expand(len(self), -1, -1)

    def _parts(self, p: int, points: Tensor) -> Parts:
        return THINGS[self._prompts[p].thing].parts(points, self._instances[p].to(points.device))

    def _normals(self, p: int, points: Tensor) -> Tensor:
        return normals(lambda at: torch.minimum(*self._parts(p, at)), points)
