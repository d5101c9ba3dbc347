"""Prompts of things, such as "a red mug", and which of them are held out.

    96 prompts = 12 things x 8 colours
      72   trained: both the prior and the generator see them
      16   composed: the prior sees them, the generator does not
       8   unseen: neither sees them

Notable:
- the split is fixed, by a rule and not by chance. Each thing has 2 colours that the generator does not see, and each
  colour 3 things; of the unseen ones, no two have a thing or a colour in common;
- the colours stay apart in all shades. Brown is left out, since it is orange in the shade, and grey is left out, since
  it is white in the shade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffdistill.errors import UserError
from diffdistill.text3d.things.procedural import THINGS

COLOURS: dict[str, tuple[float, float, float]] = {  # sRGB in [0, 1]
    "red": (0.82, 0.04, 0.10),
    "orange": (1.00, 0.55, 0.06),
    "yellow": (1.00, 0.90, 0.15),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.05, 0.35, 0.95),
    "purple": (0.58, 0.08, 0.66),
    "pink": (1.00, 0.55, 0.78),
    "cyan": (0.10, 0.80, 0.85),
}
HELD_OUT_OF_EACH = 2  # colours of a thing that the generator does not see
_TURN = 3  # has no factor in common with 8, so that all colours have their turn


@dataclass(frozen=True)
class Prompt:
    """A thing, and perhaps a colour.

    Args:
        thing: the thing's name, of one word or more.
        colour: one of `COLOURS`, or None for the colours that a 3D model has by itself.

    Raises:
        UserError: there is no such colour, or the name is empty.
    """

    thing: str
    colour: str | None = None

    def __post_init__(self) -> None:
        if self.colour is not None and self.colour not in COLOURS:
            raise UserError(f"there is no colour {self.colour!r}; the colours are {', '.join(COLOURS)}")
        if not self.thing.strip():
            raise UserError("a prompt needs the name of a thing")

    def __str__(self) -> str:
        """The text.

        >>> str(Prompt("mug", "red")), str(Prompt("car", "orange")), str(Prompt("armchair"))
        ('a red mug', 'an orange car', 'an armchair')
        """
        words = self.thing if self.colour is None else f"{self.colour} {self.thing}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Split:
    """Prompts by who sees them in training.

    Attributes:
        trained: the prior and the generator.
        composed: the prior alone.
        unseen: nobody.
    """

    trained: tuple[Prompt, ...]
    composed: tuple[Prompt, ...]
    unseen: tuple[Prompt, ...]

    @property
    def prior(self) -> tuple[Prompt, ...]:
        """What a prior is trained on."""
        return self.trained + self.composed

    @property
    def held_out(self) -> tuple[Prompt, ...]:
        """What a generator is not trained on."""
        return self.composed + self.unseen

    @property
    def all(self) -> tuple[Prompt, ...]:
        """All prompts: the trained ones come first."""
        return self.trained + self.composed + self.unseen


def split_of(things: Sequence[str] = tuple(THINGS), natural: bool = False) -> Split:
    """The split of things in all colours.

    Of the k-th pair of a thing and a held-out colour, for k = 0, 1, ..., the thing is k // 2 and the colour 3 k mod 8;
    each third pair is unseen.

    Args:
        things: names, at least 8 so that each colour is trained too. Their order does not matter: procedural things
            come first, as in `procedural.THINGS`, and others by name. So all who are given the same things agree.
        natural: whether the things come without a colour too, as 3D models do. These prompts are all trained.

    Raises:
        UserError: fewer than 8 things, or one twice.

    >>> s = split_of()
    >>> len(s.trained), len(s.composed), len(s.unseen), str(s.unseen[0])
    (72, 16, 8, 'a red ball')
    >>> split_of(sorted(THINGS)) == s
    True
    """
    if len(things) < len(COLOURS) or len(set(things)) < len(things):
        raise UserError(f"there are {len(things)} things; a split needs {len(COLOURS)} or more, each once")
    procedural, colours = list(THINGS), list(COLOURS)
    things = sorted(things, key=lambda name: (procedural.index(name) if name in THINGS else len(procedural), name))
    pairs = [
        Prompt(things[k // HELD_OUT_OF_EACH], colours[_TURN * k % len(colours)])
        for k in range(HELD_OUT_OF_EACH * len(things))
    ]
    held = set(pairs)
    everything = [Prompt(thing, colour) for thing in things for colour in ([None] if natural else []) + colours]
    trained = tuple(prompt for prompt in everything if prompt not in held)
    return Split(trained, tuple(p for k, p in enumerate(pairs) if k % 3), tuple(pairs[::3]))
