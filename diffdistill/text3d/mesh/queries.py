"""A field at points of NumPy, a limited number at once.

    {object: points (N_i, 3)} --padded--> (P, N, 3) --field--> (P, N) --cut--> {object: values (N_i,)}

Notable:
- a field answers for all of its objects. Objects whose points are equal share them, and so does a single object with
  the others, whose answers are thrown away; objects with points of their own are asked together;
- points outside of the box are moved to its border, since outside nothing is defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.field import Field
from diffdistill.text3d.mesh.grid import Grid

Colour = Callable[[Tensor], Tensor]  # points (N, 3) to sRGB (N, 3) in [0, 1]


@torch.no_grad()
def distances(field: Field, grids: Mapping[int, Grid], at_once: int, device: str) -> dict[int, np.ndarray]:
    """Signed distances of objects, each on its grid.

    Args:
        field: of P objects.
        grids: for objects of the field, by their numbers.
        at_once: how many points, counted once for each of P objects, are evaluated at once.
        device: where the field is.

    Returns:
        For each object an array of the grid's shape, float32.
    """
    made = {index: np.empty(len(grid), np.float32) for index, grid in grids.items()}
    shared = len(set(grids.values())) == 1
    for start, stop in _parts(max(map(len, grids.values()), default=0), at_once // len(field)):
        if shared:
            points = {-1: next(iter(grids.values())).points(start, stop)}
        else:
            points = {i: grid.points(start, min(stop, len(grid))) for i, grid in grids.items() if len(grid) > start}
        found = field.sdf(_tensor(field, points, device)).float().cpu().numpy()
        for index, values in made.items():
            part = values[start:stop]
            part[:] = found[index, : len(part)]
    return {index: values.reshape(grids[index].counts) for index, values in made.items()}


@torch.no_grad()
def colours(field: Field, points: Mapping[int, np.ndarray], at_once: int, device: str) -> dict[int, np.ndarray]:
    """Colours of objects, each at its own points (N_i, 3).

    Other arguments are those of `distances`.

    Returns:
        For each object (N_i, 3) float32 in [0, 1].

    Raises:
        UserError: a colour is NaN or infinite.
    """
    made = {index: np.empty((len(these), 3), np.float32) for index, these in points.items()}
    for start, stop in _parts(max(map(len, points.values()), default=0), at_once // len(field)):
        cut = {index: these[start:stop] for index, these in points.items() if len(these) > start}
        found = field(_tensor(field, {-1: cut[next(iter(cut))]} if len(points) == 1 else cut, device)).colour
        for index, these in cut.items():
            made[index][start:stop] = found[index, : len(these)].float().cpu().numpy()
    return {index: checked_colours(values, f"object {index}: ") for index, values in made.items()}


def field_colour(field: Field, index: int = 0, at_once: int = 1 << 18) -> Colour:
    """The colour of one object of a field as a function of points alone.

    Args:
        field: of P objects.
        index: the object's number.
        at_once: how many points, counted once for each of P objects, are evaluated at once.

    Returns:
        A function of points (N, 3), on the device of the field, that gives sRGB (N, 3).
    """

    @torch.no_grad()
    def colour(points: Tensor) -> Tensor:
        parts = points.clamp(-field.radius, field.radius).split(max(1, at_once // len(field)))
        return torch.cat([field(part[None]).colour[index] for part in parts])

    return colour


@torch.no_grad()
def colours_at(colour: Colour, points: np.ndarray, at_once: int = 1 << 18, device: str = "cpu") -> np.ndarray:
    """A colour function at points (N, 3): (N, 3) float32 in [0, 1].

    Raises:
        UserError: the function gives another shape, or a colour that is NaN or infinite.
    """
    made = np.empty((len(points), 3), np.float32)
    for start, stop in _parts(len(points), at_once):
        found = colour(torch.tensor(points[start:stop], dtype=torch.float32, device=device))
        if found.shape != (stop - start, 3):
            raise UserError(f"the colour function gives {tuple(found.shape)} for {stop - start} points, not (N, 3)")
        made[start:stop] = found.float().cpu().numpy()
    return checked_colours(made)


def checked_colours(values: np.ndarray, whose: str = "") -> np.ndarray:
    """Colours (N, 3) moved into [0, 1].

    Raises:
        UserError: one is NaN or infinite; `whose` stands before the message.
    """
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        raise UserError(f"{whose}the colour is NaN or infinite at {bad} of {len(values)} points; the field diverged")
    return values.clip(0, 1)


def _tensor(field: Field, points: Mapping[int, np.ndarray], device: str) -> Tensor:
    """(P, N, 3), padded by the centre of the box; or (1, N, 3) where the points are those of all, numbered -1."""
    rows = 1 if -1 in points else len(field)
    made = np.zeros((rows, max(map(len, points.values())), 3), np.float32)
    for index, these in points.items():
        made[index, : len(these)] = these
    return torch.from_numpy(made).to(device).clamp(-field.radius, field.radius)


def _parts(n: int, size: int) -> Iterator[tuple[int, int]]:
    size = max(1, size)
    return ((start, min(start + size, n)) for start in range(0, n, size))
