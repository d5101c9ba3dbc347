"""The encoders of the battery, and what each is used for.

An encoder that recipes were tuned on, or on which checkpoints are chosen, is a *tuning* encoder: a generator can be
good on it by chance or by choice. A *judging* encoder is for the last look alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.agreement.align import TowerFeatures
from diffdistill.evaluation.features.base import EXTRACTORS, Extractor, build_extractor

WATCHED = ("mobilenet_v2", "st-alexnet")  # of the tuning encoders, the fast ones: while training, and in quickstart
TUNING = (*WATCHED, "st-vgg16")
JUDGING = ("efficientnet_lite0", "clip-vit-b16")
CLIP = "clip-vit-b16"  # OpenAI's image tower from the 8-bit weights that a package holds


class ClipTower(TowerFeatures):
    """The image tower of OpenAI's CLIP ViT-B/16, from 8-bit weights; vectors of length sqrt(512).

    At that length a cosine c gives the cubic kernel (c + 1)^3. At length 1 the kernel would be almost linear, and a
    kernel distance little more than a distance of means.
    """

    name = "clip-vit-b16-int8-weights, length sqrt(d)"

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 160, 160) to vectors (N, 512) of length sqrt(512)."""
        return super().network(x) * self.dim**0.5


@dataclass(frozen=True)
class Battery:
    """Names of encoders, by what they are used for.

    Args:
        tuning: names of those that choices are made by.
        judging: names of those for the last look.

    Raises:
        UserError: there is none, or one is named twice.
    """

    tuning: Sequence[str] = TUNING
    judging: Sequence[str] = JUDGING

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise UserError("the battery has no encoder; name one")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"the encoder {twice} is named twice; it is for tuning or for judging")

    @property
    def names(self) -> list[str]:
        """All names, those of tuning first."""
        return [*self.tuning, *self.judging]


def build_encoder(name: str, device: str | torch.device = "cpu", weights: str | Path | None = None) -> Extractor:
    """Build an encoder of the battery.

    Args:
        name: "clip-vit-b16", or a name in `features.base.EXTRACTORS`.
        device: where the network runs.
        weights: as for `build_extractor`.

    Raises:
        UserError: as `build_extractor`.
    """
    if name == CLIP:
        return ClipTower(weights, device)
    if name not in EXTRACTORS and CLIP in difflib.get_close_matches(name, [CLIP, *EXTRACTORS], 1, 0.4):
        raise UserError(f"no encoder {name!r}, did you mean {CLIP!r}?")
    return build_extractor(name, weights, device)
