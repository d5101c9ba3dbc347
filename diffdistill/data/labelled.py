"""Labelled images for probes: a part to fit on, and another one to test on.

The label of an image is its caption, or a line of a file. For the emoji set it is the group of the concept, such as
"animal" or "food". Without a test set of its own, a fifth is kept for testing: every fifth concept of the emoji set (in
both styles), every fifth image of each label of another set. A test image with the pixels of one to fit on is left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .captioned import CaptionedData, fitted, load_captioned

FOLDS = 5
FEWEST = 2  # images of a label in each part
SMALLEST_GROUP = 40  # images of a group of the emoji set
MOST_LABELS = 1000


@dataclass(frozen=True)
class Labelled:
    """Images with labels, in two parts.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: (N,), int64.
        names: the labels' names, in the order of the numbers.
        train, test: rows, int64.
        left_out: images of labels that one of the parts lacks, and test images that are also among the others.
        split: how the parts were made, in words.
        why_left_out: in words.
    """

    images: Tensor
    labels: Tensor
    names: list[str]
    train: Tensor
    test: Tensor
    left_out: int
    split: str
    why_left_out: str = ""

    def some(self, train: int | None, test: int | None) -> Labelled:
        """Parts of at most so many images, the same share of each label, drawn by chance, always the same ones.

        Raises:
            UserError: the part to fit on then lacks a label of the test part.
        """
        fit, rest = _some(self.train, self.labels, train), _some(self.test, self.labels, test)
        some = replace(self, train=fit, test=rest)
        unknown = set(self.labels[some.test].tolist()) - set(self.labels[some.train].tolist())
        if unknown:
            name = self.names[min(unknown)]
            raise UserError(f"none of the {len(some.train)} images to fit on is labelled {name!r}; take more images")
        return some


def load_labelled(
    source: str, labels: str | None = None, test: str | None = None, test_labels: str | None = None,
    size: int | None = None,
) -> Labelled:  # fmt: skip
    """Read labelled images.

    Args:
        source: as in `CaptionedData`; the emoji set has labels of its own.
        labels: a file of labels, "FILE.csv::COLUMN" to name the column; None for the captions beside the images.
        test, test_labels: the same of the test images; None for a fifth of `source`.
        size: side in pixels that images are cut and resized to; None for their own size.

    Raises:
        UserError: images or labels cannot be read; there are no two labels with two images in each part, or over a
            thousand.
    """
    if (Path(source) / "concepts.tsv").is_file():
        if test is not None:
            raise UserError(
                f"the emoji set {source} is split by concepts, so it takes no other test images; name --images"
            )
        if labels is not None:
            raise UserError(f"--labels is {labels}; the emoji set {source} has labels of its own")
        return _emoji(source, size)
    first = load_captioned(CaptionedData(source, labels, size))
    if test is None:
        seen: Counter[str] = Counter()
        is_test = []
        for name in first.names:
            is_test.append(seen[name] % FOLDS == FOLDS - 1)
            seen[name] += 1
        split = "every fifth image of a label is for testing"
        return _made(first.images, first.names, torch.tensor(is_test), split)
    second = load_captioned(CaptionedData(test, test_labels, size))
    if second.images.shape[1:] != first.images.shape[1:]:
        raise UserError(f"images have {_size(first.images)} pixels and test images {_size(second.images)}; set --size")
    is_second = torch.arange(len(first) + len(second)) >= len(first)
    return _made(torch.cat([first.images, second.images]), first.names + second.names, is_second, f"tested on {test}")


def _emoji(source: str, size: int | None) -> Labelled:
    from .emoji import groups, load_emoji

    emoji, group = load_emoji(source, "all"), groups(source)
    order = {name: i for i, name in enumerate(dict.fromkeys(emoji.names))}
    named = [group[name] for name in emoji.names]
    large = {name for name, n in Counter(named).items() if n >= SMALLEST_GROUP}
    keep = [i for i, name in enumerate(named) if name in large]
    is_test = torch.tensor([order[emoji.names[i]] % FOLDS == FOLDS - 1 for i in keep])
    split = f"every fifth concept is for testing; groups of {SMALLEST_GROUP} images or more"
    images = emoji.images if size is None else torch.stack([fitted(image, (size, size)) for image in emoji.images])
    return _made(images[keep], [named[i] for i in keep], is_test, split, len(named) - len(keep))


def _made(images: Tensor, names: list[str], is_test: Tensor, split: str, left_out: int = 0) -> Labelled:
    pixels = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    fitted_on = {each for each, test in zip(pixels, is_test.tolist(), strict=True) if not test}
    again = torch.tensor([each in fitted_on for each in pixels]) & is_test
    where = [2 if twice else int(test) for twice, test in zip(again.tolist(), is_test.tolist(), strict=True)]
    parts = [Counter(name for name, part in zip(names, where, strict=True) if part == k) for k in (0, 1)]
    known = sorted(name for name in parts[0] if parts[0][name] >= FEWEST and parts[1][name] >= FEWEST)
    if not 2 <= len(known) <= MOST_LABELS:
        raise UserError(
            f"{len(known)} labels have {FEWEST} images or more in both parts, of {len(parts[0] | parts[1])}; "
            f"a probe needs 2 to {MOST_LABELS}, such as the names of classes. A test image with the pixels of "
            "another one does not count"
        )
    number = {name: i for i, name in enumerate(known)}
    keep = torch.tensor([name in number for name in names]) & ~again
    labels = torch.tensor([number.get(name, -1) for name in names])
    rows = torch.arange(len(names))
    few = sorted({name for name in names if name not in number})
    shown = ", ".join(map(repr, few[:5])) + (" and others" if len(few) > 5 else "")
    why = [f"{left_out} are of small groups"] if left_out else []
    left_out += int((~keep).sum())
    why += [f"{int(again.sum())} test images have the pixels of one to fit on"] if bool(again.any()) else []
    why += [f"labels that are not in both parts: {shown}"] if few else []
    return Labelled(images, labels, known, rows[keep & ~is_test], rows[keep & is_test], left_out, split, "; ".join(why))


def _some(rows: Tensor, labels: Tensor, most: int | None) -> Tensor:
    """At most so many rows, in their order: the same share of each label, drawn by chance from seed 0."""
    if most is None or most >= len(rows):
        return rows
    place, drawn = torch.empty(len(rows), dtype=torch.float64), torch.Generator().manual_seed(0)
    for label in labels[rows].unique():
        where = (labels[rows] == label).nonzero()[:, 0]
        place[where] = (torch.randperm(len(where), generator=drawn) + 0.5).double() / len(where)
    return rows[place.argsort(stable=True)[:most].sort().values]


def _size(images: Tensor) -> str:
    return f"{images.shape[-1]} x {images.shape[-2]}"
