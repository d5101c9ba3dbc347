"""Prompts are split as they should be, colours stay apart, and rings are drawn in their ranges."""

import itertools

import numpy as np
import pytest
import torch

from diffdistill.errors import UserError
from diffdistill.text3d.things.catalogue import COLOURS, Prompt, split_of
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.viewpoints import reference_views, ring_starts, ring_views


def test_the_split() -> None:
    split = split_of()
    assert (len(split.trained), len(split.composed), len(split.unseen)) == (72, 16, 8)
    assert len(set(split.all)) == 96 and set(split.all) == {Prompt(t, c) for t in THINGS for c in COLOURS}
    assert len(split.prior) == 88 and len(split.held_out) == 24 and not set(split.trained) & set(split.held_out)
    assert {p.thing for p in split.trained} == set(THINGS) and {p.colour for p in split.trained} == set(COLOURS)
    for thing in THINGS:
        assert sum(p.thing == thing for p in split.held_out) == 2
    for colour in COLOURS:
        assert sum(p.colour == colour for p in split.held_out) == 3
        assert sum(p.colour == colour for p in split.unseen) == 1
    assert len({p.thing for p in split.unseen}) == 8
    assert split == split_of()
    names = [f"thing {k}" for k in range(48)]
    real = split_of(names, natural=True)
    assert len(real.all) == 48 * 9 and len(real.held_out) == 96 and all(p.colour for p in real.held_out)
    assert {p for p in real.trained if p.colour is None} == {Prompt(name) for name in names}
    with pytest.raises(UserError, match="there are 7 things; a split needs 8 or more"):
        split_of(names[:7])
    with pytest.raises(UserError, match="there is no colour 'brown'"):
        Prompt("mug", "brown")


def test_colours_stay_apart_in_all_shades_and_from_white() -> None:
    """CIE 1976 difference in Lab, of which 2.3 can just be seen."""

    def lab(colours: np.ndarray) -> np.ndarray:
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        x, y, z = np.moveaxis(linear @ matrix.T / matrix.sum(1), -1, 0)
        a, b, c = (np.where(v > 0.008856, np.cbrt(v), 7.787 * v + 16 / 116) for v in (x, y, z))
        return np.stack([116 * b - 16, 500 * (a - b), 200 * (b - c)], -1)

    shades = np.linspace(0.45, 1, 12)[:, None]
    of = {name: lab(shades * np.array(colour)) for name, colour in COLOURS.items()} | {"white": lab(np.ones((1, 3)))}
    for one, other in itertools.combinations(of, 2):
        assert np.linalg.norm(of[one][:, None] - of[other][None], axis=-1).min() > 20, (one, other)


def test_rings_are_drawn_in_their_ranges() -> None:
    azimuth, elevation = ring_starts(torch.tensor([[0.0, 0.0], [0.25, 0.5], [1.0, 1.0]]))
    assert azimuth.tolist() == [0.0, 90.0, 0.0] and elevation.tolist() == [-15.0, 17.5, 50.0]
    around, above = ring_views(azimuth, elevation)
    assert around[1].tolist() == [90.0, 180.0, 270.0, 0.0] and above[1].tolist() == [17.5] * 4
    references = torch.stack(reference_views(), -1)
    assert len(references.unique(dim=0)) == 24 and references[9].tolist() == [45.0, 20.0]
