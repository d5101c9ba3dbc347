"""Views of many things, put together with the colours and backgrounds that are asked for.

    folder of .npz --load_views--> buffers (T, R, 4, 4, S, S) uint8
                                        |  ring and prompt of each sample
                                        v
    image = min(mix . channels, alpha cap) + (1 - alpha) background          (B, V, 3, S, S) in [0, 1]

Notable:
- `mix`, a 3 x 3 matrix for each thing and colour, is what differs between things: of a procedural thing it is the
  colour of the prompt and of the second part, of a 3D model the identity (its own colours), or colour times luma;
- only a tint has a cap, which is its colour: what is brighter than the luma of white stays the full colour;
- drawing is deterministic: who samples passes uniform numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things.catalogue import COLOURS, Prompt
from diffdistill.text3d.things.models3d import LUMA
from diffdistill.text3d.things.view_files import ThingViews, read_views
from diffdistill.text3d.things.viewpoints import REFERENCES, reference_views, ring_views

NATURAL = len(COLOURS)  # the index of no colour
UNIFORMS = 6  # numbers that a sample is drawn from


class ViewBatch(NamedTuple):
    """Views of B objects, V each.

    Attributes:
        images: (B, V, 3, S, S), sRGB in [0, 1].
        things: (B,) int64, indexes into the names of the things.
        colours: (B,) int64, indexes into `COLOURS`, or `NATURAL`.
        prompts: B texts.
        camera: (B, V, 2), azimuth and elevation in degrees.
        background: (B, 3) in [0, 1].
    """

    images: Tensor
    things: Tensor
    colours: Tensor
    prompts: list[str]
    camera: Tensor
    background: Tensor


class Views:
    """Rings and reference views of things.

    Args:
        things: one or more, with the same number of rings and of one size.
        size: side of the views that are given out; each must divide the stored side. By default the stored one.

    Attributes:
        names: of the things, in order.
        size: S, the side of a view in pixels.
        rings: R, the number of rings of each thing.

    Raises:
        UserError: there is no thing, a name is twice there, sizes or numbers of rings differ, or the size does not
            divide the stored one.
    """

    def __init__(self, things: Sequence[ThingViews], size: int | None = None) -> None:
        if not things:
            raise UserError("there are no views of things")
        self.names = tuple(thing.name for thing in things)
        if len(set(self.names)) < len(self.names):
            raise UserError(f"the views hold a thing twice: {', '.join(self.names)}")
        if len(shapes := {tuple(thing.rings.shape[:2]) + (thing.size,) for thing in things}) > 1:
            raise UserError(f"the things have different numbers of rings, or sizes: {sorted(shapes)}")
        stored = things[0].size
        self.size = stored if size is None else size
        if self.size < 1 or stored % self.size:
            raise UserError(f"size is {self.size}; it must divide {stored}, the size of the stored views")
        self.rings = len(things[0].rings)
        self._rings = torch.stack([_four(thing.rings, self.size) for thing in things])
        self._references = torch.stack([_four(thing.references, self.size) for thing in things])
        self._starts = torch.stack([torch.stack([thing.azimuth, thing.elevation], -1) for thing in things])
        self._natural = torch.tensor([thing.kind == "colours" for thing in things])
        self._mix, self._cap = (torch.stack(x) for x in zip(*(_mixes(thing) for thing in things), strict=True))

    def __len__(self) -> int:
        """T, the number of things."""
        return len(self.names)

    @property
    def natural(self) -> bool:
        """Whether all things have colours by themselves."""
        return bool(self._natural.all())

    def is_procedural(self, thing: str) -> bool:
        """Whether a thing is a procedural one, whose true field is known; its name alone does not say so."""
        return thing in self.names and not bool(self._natural[self.names.index(thing)])

    def to(self, device: torch.device | str) -> Views:
        """These views, moved to a device."""
        for name in ("_rings", "_references", "_starts", "_natural", "_mix", "_cap"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def indexes(self, prompts: Iterable[Prompt]) -> Tensor:
        """Thing and colour of prompts, (P, 2) int64.

        Raises:
            UserError: a thing is not there, or has no colours by itself and the prompt names none.
        """
        rows = []
        for prompt in prompts:
            if prompt.thing not in self.names:
                raise UserError(f"there are no views of {prompt.thing!r}; there are those of {', '.join(self.names)}")
            thing = self.names.index(prompt.thing)
            if prompt.colour is None and not bool(self._natural[thing]):
                raise UserError(f"{str(prompt)!r} needs a colour, since a {prompt.thing} has none by itself")
            colour = NATURAL if prompt.colour is None else list(COLOURS).index(prompt.colour)
            rows.append((thing, colour))
        return torch.tensor(rows, dtype=torch.int64, device=self._mix.device).reshape(-1, 2)

    def of_rings(self, which: Tensor, rings: Tensor, background: Tensor) -> ViewBatch:
        """Rings of objects.

        Args:
            which: (B, 2) int64, thing and colour, as `indexes` makes it.
            rings: (B,) int64, in [0, R).
            background: (B, 3) in [0, 1].

        Returns:
            B objects with 4 views each.
        """
        camera = torch.stack(ring_views(*self._starts[which[:, 0], rings].unbind(-1)), -1)
        return self._composed(self._rings[which[:, 0], rings], which, camera, background)

    def drawn(self, prompts: Tensor, uniforms: Tensor, share_of_white: float = 0.5) -> ViewBatch:
        """Random rings of random prompts.

        Args:
            prompts: (P, 2) int64, as `indexes` makes it; each is as likely as the others.
            uniforms: (B, 6) in [0, 1]: for the prompt, the ring, whether the background is white, and its colour.
            share_of_white: how often the background is white. Else its colour is uniform.

        Returns:
            B objects with 4 views each.
        """
        if uniforms.dim() != 2 or uniforms.shape[1] != UNIFORMS:
            raise UserError(f"uniforms are {tuple(uniforms.shape)}; they must be (B, {UNIFORMS})")
        which = prompts[(uniforms[:, 0] * len(prompts)).long().clamp(max=len(prompts) - 1)]
        rings = (uniforms[:, 1] * self.rings).long().clamp(max=self.rings - 1)
        white = (uniforms[:, 2] < share_of_white)[:, None]
        return self.of_rings(which, rings, torch.where(white, torch.ones_like(uniforms[:, 3:]), uniforms[:, 3:]))

    def references(self, which: Tensor, background: Tensor | None = None) -> ViewBatch:
        """The reference views of objects, which show the mean instance.

        Args:
            which: (B, 2) int64, as `indexes` makes it.
            background: (B, 3) in [0, 1]; by default white.

        Returns:
            B objects with 24 views each.
        """
        camera = torch.stack(reference_views(which.device), -1).expand(len(which), REFERENCES, 2)
        if background is None:
            background = torch.ones(len(which), 3, device=which.device)
        return self._composed(self._references[which[:, 0]], which, camera, background)

    def _composed(self, channels: Tensor, which: Tensor, camera: Tensor, background: Tensor) -> ViewBatch:
        things, colours = which.unbind(1)
        channels = channels.float() / 255
        alpha = channels[:, :, 3:]
        mixed = torch.einsum("bcd,bvdij->bvcij", self._mix[things, colours], channels[:, :, :3])
        images = mixed.minimum(alpha * self._cap[things, colours][:, None, :, None, None])
        images = images + (1 - alpha) * background[:, None, :, None, None]
        names = [*COLOURS, None]
        prompts = [str(Prompt(self.names[thing], names[colour])) for thing, colour in which.tolist()]
        return ViewBatch(images.clamp(0, 1), things, colours, prompts, camera, background)


def load_views(folder: str | Path, names: Sequence[str] | None = None, size: int | None = None) -> Views:
    """The views in a folder that `train/things.py` made.

    Args:
        folder: with one .npz for each thing.
        names: of the things that are read, in this order; by default all, by their file's names.
        size: see `Views`.

    Raises:
        UserError: a file is missing, damaged, or states another name than its own; or see `Views`.
    """
    folder = Path(folder)
    wanted = sorted(file.stem for file in folder.glob("*.npz")) if names is None else list(names)
    if not wanted:
        raise UserError(
            f"{folder} holds no views; python train/things.py --out {folder} --instances 24 --rings 16 makes them"
        )
    things = []
    for name in wanted:
        if not (file := folder / f"{name}.npz").is_file():
            raise UserError(f"{folder} holds no {name}.npz")
        things.append(read_views(file))
        if things[-1].name != name:
            raise UserError(f"{file} states that it shows {things[-1].name!r}")
    return Views(things, size)


def _four(views: Tensor, size: int) -> Tensor:
    """Views (..., C, S, S) uint8 with 3 channels before alpha, in the size; smaller ones are means of squares."""
    if views.shape[-3] == 3:
        views = torch.cat([views[..., :2, :, :], torch.zeros_like(views[..., :1, :, :]), views[..., 2:, :, :]], -3)
    if (factor := views.shape[-1] // size) > 1:
        parts = views.reshape(*views.shape[:-2], size, factor, size, factor).float()
        views = parts.mean((-3, -1)).round().to(torch.uint8)
    return views


def _mixes(thing: ThingViews) -> tuple[Tensor, Tensor]:
    """Of one thing in each colour, and without one: the mix (9, 3, 3), and the cap (9, 3)."""
    colours = torch.tensor(list(COLOURS.values()))
    if thing.kind == "colours":
        tints = colours[:, :, None] * (torch.tensor(LUMA) / thing.white)
        return torch.cat([tints, torch.eye(3)[None]]), torch.cat([colours, torch.ones(1, 3)])
    second = torch.tensor(thing.companion).expand_as(colours)
    mix = torch.stack([colours, second, torch.zeros_like(colours)], -1)
    return torch.cat([mix, torch.zeros(1, 3, 3)]), torch.ones(NATURAL + 1, 3)
