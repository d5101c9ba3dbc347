"""Which prompts are measured, by who saw them in training.

    trained    the prior and the generator saw them
    composed   the prior saw them, the generator did not: held out from the generator
    unseen     neither saw them: held out from the prior too

The prior's prompts follow from its views (`catalogue.split_of`). Those of a
generator are what its prompts file says, or else the ones that the same split calls trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffdistill.errors import UserError
from diffdistill.text3d.things.catalogue import Prompt, Split, split_of
from diffdistill.text3d.things.views import Views
from diffdistill.text3d.words import words_of

SPLITS = ("trained", "composed", "unseen")
IN_WORDS = {
    "trained": "trained",
    "composed": "held out from the generator",
    "unseen": "held out from the prior too",
    "all": "all",
}


def split_of_views(views: Views, trained: Sequence[str] | None = None) -> Split:
    """The split of the things that views show.

    Args:
        views: those that the prior was trained on, or of the same things in the same order.
        trained: what the generator was trained on; prompts of other things are then not measured. None for the split's
            own trained prompts.

    Raises:
        UserError: fewer than 8 things, or a trained prompt that is none of the views' prompts.
    """
    whole = split_of(views.names, natural=views.natural)
    if trained is None:
        return whole
    known = {_words(str(prompt)): prompt for prompt in whole.all}
    chosen: dict[Prompt, None] = {}
    for text in trained:
        if _words(text) not in known:
            raise UserError(
                f"the generator was trained on {text!r}, of which there are no views; there are {len(known)} prompts, "
                f"such as {str(whole.all[0])!r}"
            )
        chosen[known[_words(text)]] = None
    things = {prompt.thing for prompt in chosen}
    left = [prompt for prompt in whole.all if prompt.thing in things and prompt not in chosen]
    unseen = [prompt for prompt in left if prompt in whole.unseen]
    return Split(tuple(chosen), tuple(prompt for prompt in left if prompt not in whole.unseen), tuple(unseen))


def of_things(split: Split, things: Sequence[str]) -> Split:
    """The part of a split that is of some things.

    Raises:
        UserError: a thing has no prompt in the split.
    """
    for thing in things:
        if all(prompt.thing != thing for prompt in split.all):
            there = ", ".join(dict.fromkeys(prompt.thing for prompt in split.all))
            raise UserError(f"there is no prompt of {thing!r}; there are those of {there}")
    return Split(*(tuple(prompt for prompt in getattr(split, name) if prompt.thing in things) for name in SPLITS))


def _words(text: str) -> str:
    """A prompt as a model reads it: in lower case, without articles."""
    return " ".join(words_of(text))
