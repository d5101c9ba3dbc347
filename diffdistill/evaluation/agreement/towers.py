"""The towers that measure how well images agree with their captions, and the numbers they give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffdistill.data.captions import captions_for, captions_of_file
from diffdistill.data.source import Source
from diffdistill.errors import UserError
from diffdistill.evaluation.agreement.scores import Towers, agreement, report
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.protocols import Protocol

KINDS = ("align", "clip")


def build_towers(
    kind: str,
    protocol: Protocol | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    allow_other_weights: bool | str = False,
) -> Towers:
    """The image tower and the text tower of one kind.

    Args:
        kind: "align", the towers that need no download, or "clip", the CLIP model that the protocol names.
        protocol: names CLIP's model, weights and prefix; "align" needs none.
        weights: CLIP's file; None looks in the usual places, "download" fetches it.
        device: where the networks run.
        allow_other_weights: as in `Protocol.build_clip`.

    Raises:
        UserError: an unknown kind, a protocol without CLIP, or weights that are missing or have another hash.
    """
    if kind not in KINDS:
        raise UserError(f"unknown towers {kind!r}; there are {' and '.join(KINDS)}")
    if kind == "align":
        from diffdistill.evaluation.agreement.align import AlignFeatures

        return AlignFeatures(device=device)
    if protocol is None:
        raise UserError("CLIP's towers need a protocol that names a CLIP model, such as coco30k-clean256")
    return protocol.build_clip(weights, device, allow_other_weights)


class PairedCaptions(NamedTuple):
    """Captions of images, in the images' order.

    Attributes:
        texts: one for each image.
        pairing: how captions and images were paired, for a report.
    """

    texts: list[str]
    pairing: dict[str, Any]


def paired_captions(
    captions: str | Path | Sequence[str] | PairedCaptions | None, source: Source, n: int
) -> PairedCaptions:
    """The captions of the first n images of a source.

    Args:
        captions: a captions file; or one caption for each image; or None for the captions that the source comes with.
        source: the images.
        n: number of images.

    Raises:
        UserError: no captions, or captions that do not fit the images.
    """
    if isinstance(captions, PairedCaptions):
        return captions
    if isinstance(captions, str | Path):
        return PairedCaptions(*captions_for(captions_of_file(captions), source, n))
    pairing = {"paired_by": "order"}
    if captions is None:
        captions, pairing = source.captions(), {"paired_by": source.captions_from}
    if captions is None:
        raise UserError("captions are missing; agreement needs one for each image, in a file or beside it")
    if len(captions) < n:
        raise UserError(f"captions has {len(captions)} texts; there are {n} images, and each needs one")
    return PairedCaptions(list(captions[:n]), pairing)


def texts_of(towers: Towers, captions: Sequence[str]) -> Tensor:
    """Embeddings of captions, one row a caption, of shape (n, d). Equal captions are embedded once."""
    place = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    return towers.text(list(place))[torch.tensor([place[caption] for caption in captions])]


def agreement_numbers(
    towers: Towers, images: FeatureRows, captions: Sequence[str], texts: Tensor | None = None
) -> dict[str, Any]:
    """The numbers of `scores.agreement` under the towers' names, and the protocol under which images were embedded.

    Args:
        towers: those that embedded the images.
        images: rows of n images.
        captions: one for each image.
        texts: what `texts_of` gives for the captions, where it is known already.

    Raises:
        UserError: another number of captions than images, or embeddings that are not finite.
    """
    texts = texts_of(towers, captions) if texts is None else texts
    try:
        found = agreement(images.features, texts, captions)
    except ValueError as error:
        raise UserError(f"{images.source}: {error}") from error
    return {**report(towers, found), f"{towers.kind}_protocol": images.protocol}
