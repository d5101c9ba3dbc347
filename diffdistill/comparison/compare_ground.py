"""What a comparison draws and measures against: prompts, captions that are drawn several times, and real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from diffdistill.comparison.ruler import FEWEST
from diffdistill.data.in_memory import InMemory
from diffdistill.data.source import Source
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError


class Drawn(NamedTuple):
    """The prompts of a seed.

    Attributes:
        prompts: one for each image.
        captions: those that are drawn several times, all different.
        rows: which real images are the reference, in order; None for all.
    """

    prompts: list[str]
    captions: list[str]
    rows: list[int] | None


class CompareGround:
    """Prompts of each seed, and real images.

    Args:
        reference: real images.
        texts: the prompts that there are.
        images: number of prompts of a seed.
        captions: number of captions that are drawn several times.
        own: whether prompt i is the caption of real image i. The images of a seed's prompts are then left out of its
            reference.
        name: of the prompts, for a report.

    Raises:
        UserError: there are no prompts, or too few real images are left as the reference.
    """

    def __init__(
        self, reference: Source, texts: Sequence[str], images: int, captions: int, own: bool, name: str
    ) -> None:
        if not texts:
            raise UserError("there are no prompts")
        distinct = len(set(texts))
        if captions > distinct:
            raise UserError(f"captions is {captions}; there are {distinct} different prompts")
        if images < FEWEST:
            raise UserError(f"images is {images}; a kernel distance and its error need at least {FEWEST}")
        left = len(reference) - images if own else len(reference)
        if left < FEWEST:
            raise UserError(
                f"images is {images}; the set has {len(reference)} images, and {FEWEST} must stay as the reference"
            )
        self.reference, self.texts, self.images, self.captions = reference, list(texts), images, captions
        self.own, self.name = own, name

    def drawn(self, seed: int) -> Drawn:
        """The prompts of a seed. Where there are fewer prompts than images, each is drawn several times."""
        order = torch.randperm(len(self.texts), generator=torch.Generator().manual_seed(seed)).tolist()
        prompts = [self.texts[order[i % len(order)]] for i in range(self.images)]
        captions = list(dict.fromkeys(self.texts[i] for i in order))[: self.captions]
        return Drawn(prompts, captions, order[self.images :] if self.own else None)


def emoji_ground(
    folder: str | Path, split: Literal["train", "heldout"], images: int, captions: int, name: str | None = None
) -> CompareGround:
    """Captions of an emoji set.

    With "train", prompts are captions of training images, and the reference is all other training images. With
    "heldout", they are captions of concepts that were never trained on, and the reference is the images of these.

    Args:
        folder: laid out as assets/emoji.
        split: which part.
        images, captions: as in `CompareGround`.
        name: how the folder is called in a report.

    Raises:
        UserError: as `CompareGround` and `data.captioned.load_split`.
    """
    from diffdistill.data.captioned import load_split

    part = load_split(folder, split)
    words = {"train": "training captions", "heldout": "captions of held-out concepts"}[split]
    source = InMemory(part.images, part.captions, str(name or folder))
    return CompareGround(source, part.captions, images, captions, split == "train", f"{words} of {name or folder}")


def given_ground(prompts: Sequence[str], reference: str, images: int, captions: int, name: str) -> CompareGround:
    """Prompts of a file, and real images at a path.

    Args:
        prompts: at least one.
        reference: images: a folder, .zip, .npz, .tar or emoji set.
        images, captions, name: as in `CompareGround`.

    Raises:
        UserError: as `CompareGround` and `open_source`.
    """
    source: Any = open_source(reference)
    return CompareGround(source, prompts, images, captions, False, name)
