"""How well images agree with their captions: the mean cosine of their embeddings, and retrieval among all captions.

Notable:
- every pair of towers gives the same kinds of numbers. The key of a number names the towers, because a cosine by other
  towers, with another prefix or on another scale is a different number;
- retrieval is among the distinct captions of the set, so for a caption that occurs twice either one is right;
- R@1 and R@5 depend on the number of captions (chance is k over that number): compare at equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_TILE = 4096
_SLACK = 1e-12


class Towers(Protocol):
    """An image tower and a text tower with a joint space, such as `clip.ClipFeatures` and `align.AlignFeatures`."""

    name: str
    dim: int
    kind: str  # "clip" or "align"; only numbers of CLIP's own towers are called CLIP score
    key: str  # the end of their numbers' names, such as "(ViT-g-14/laion2b_s12b_b42k, 'A photo depicts ', x1)"

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number has to carry."""

    def __call__(self, images: Tensor | Sequence[Tensor], batch_size: int = 64, progress: bool = False) -> Tensor:
        """Embeddings of images, Tensor of shape (N, dim), of length 1."""

    def text(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions, Tensor of shape (N, dim), of length 1."""


class Agreement(NamedTuple):
    """How well images agree with their captions.

    Attributes:
        score: mean cosine of image and caption, in [-1, 1].
        se: standard error of the score.
        r1, r5: share of images whose caption is the nearest, or among the five nearest, in [0, 1].
        n: number of images.
        captions: number of distinct captions.
    """

    score: float
    se: float
    r1: float
    r5: float
    n: int
    captions: int


def agreement(images: Tensor, texts: Tensor, captions: Sequence[str]) -> Agreement:
    """Mean cosine of images and their captions, and how often a caption is the nearest or among the five nearest.

    The score is that of Hessel et al. 2021 (arXiv 2104.08718, eq. 1) without its factor 2.5 and without clipping at 0,
    on the scale of the distillation papers (about 0.3 for a good match by CLIP). In retrieval an image counts as found
    at k when fewer than k other captions are strictly nearer. Ties are ranked at random, so that embeddings that are
    all equal score k over the number of captions, not 1.

    Args:
        images: Tensor of shape (n, d), embeddings of length 1.
        texts: Tensor of shape (n, d), embeddings of length 1; row i belongs to image i.
        captions: n strings; equal captions have equal rows.

    Raises:
        ValueError: shapes that do not agree, no rows, or values that are not finite.

    >>> eye = torch.eye(3)
    >>> agreement(eye, eye[[0, 2, 1]], ["a", "b", "c"])
    Agreement(score=0.333..., se=0.333..., r1=0.333..., r5=1.0, n=3, captions=3)
    """
    if images.ndim != 2 or images.shape != texts.shape or len(captions) != len(images) or not len(images):
        raise ValueError(
            f"images and texts should have one shape (n, d) with n captions, got {tuple(images.shape)}, "
            f"{tuple(texts.shape)} and {len(captions)} captions"
        )
    x, y = images.double(), texts.double()
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise ValueError("embeddings hold values that are not finite")
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    rows = sorted(first.values())
    choices, place = y[rows], {captions[row]: k for k, row in enumerate(rows)}
    own = torch.tensor([place[caption] for caption in captions])
    cosines, found = [], {1: 0.0, 5: 0.0}
    for start in range(0, len(x), _TILE):
        part, mine = x[start : start + _TILE], own[start : start + _TILE]
        all_of = part @ choices.T
        right = all_of.gather(1, mine[:, None])
        nearer = (all_of > right + _SLACK).sum(1)  # equal rows differ by the rounding of the product's tiles
        tied = ((all_of - right).abs() <= _SLACK).sum(1) - 1
        for k in found:  # with t ties, the rank is uniform on nearer .. nearer + t
            found[k] += float(((k - nearer).double() / (tied + 1)).clamp(0, 1).sum())
        cosines.append(right[:, 0])
    cosine = torch.cat(cosines)
    n = len(x)
    se = float(cosine.std() / n**0.5) if n > 1 else 0.0
    return Agreement(float(cosine.mean()), se, found[1] / n, found[5] / n, n, len(rows))


def report(towers: Towers, found: Agreement) -> dict[str, Any]:
    """The numbers under names that say which towers made them, with the towers' protocol beside them."""
    kind, key = towers.kind, towers.key
    numbers = {"score": found.score, "score_se": found.se, "r1": found.r1, "r5": found.r5}
    return {
        **{f"{kind}_{name}{key}": value for name, value in numbers.items()},
        f"{kind}_n": found.n,
        f"{kind}_captions": found.captions,
        f"{kind}_protocol": towers.protocol,
    }
