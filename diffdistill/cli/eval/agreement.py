"""`--agreement align|clip`: the options, the towers, whose caption is which picture's, and the numbers' names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffdistill.cli.eval.options import device_of, in_options
from diffdistill.cli.paths import find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffdistill.data.source import Source
    from diffdistill.evaluation.agreement.scores import Towers
    from diffdistill.evaluation.distances.states import FeatureRows
    from diffdistill.evaluation.protocols import Protocol

_CLIP = ("clip_model", "clip_prefix", "clip_weights", "clip_weights_sha256")


def agreement_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("agreement of pictures and captions; needs no reference")
    group.add_argument("--agreement", choices=("align", "clip"), help="by which towers")
    group.add_argument(
        "--captions",
        help="of each picture: .txt (one a line, in the order of the pictures), .jsonl, .csv, .tsv or COCO's .json, "
        "which may name their pictures; by default the .txt or .json beside each picture, or a generator's prompts",
    )
    clip_options(group)


def clip_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--clip_model", metavar="MODEL/TAG", help="of open_clip, where the protocol names none")
    parser.add_argument("--clip_prefix", help="put before every caption, where the protocol names no CLIP")
    parser.add_argument("--clip_weights", help="a file, or download")
    parser.add_argument("--clip_weights_sha256", help="that of weights which are not the published ones")


def check_clip(o: argparse.Namespace) -> None:
    """Refuse CLIP's options without CLIP, and a model that is not written as one."""
    for name in _CLIP:
        if getattr(o, name) is not None and o.agreement != "clip":
            raise UserError(f"--{name} needs --agreement clip")
    if o.clip_model is not None and not all(o.clip_model.partition("/")):
        raise UserError(f"--clip_model {o.clip_model} should be MODEL/TAG, as ViT-B-32-quickgelu/openai")


def check_agreement(o: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read."""
    if o.agreement is None and o.captions is not None:
        raise UserError("--captions needs --agreement align or --agreement clip")
    check_clip(o)
    if o.captions is not None and o.model is not None:
        raise UserError("--captions is for --images; the captions of --model are its --prompts")
    if o.agreement is not None and o.on_corrupt == "skip":
        raise UserError("--agreement needs every picture, each beside its caption; leave out --on_corrupt skip")


def captions_of(o: argparse.Namespace, source: Source, n: int) -> tuple[list[str], dict[str, Any]]:
    """The captions of the first n pictures, and how they were paired: of --captions, or of a source that knows them."""
    from diffdistill.data.captions import captions_for, captions_of_file

    if o.captions is not None:
        return captions_for(captions_of_file(find(o.captions)), source, n)
    known = source.captions()
    if known is None:
        raise UserError(
            "--agreement needs --captions, a file with a caption for each picture, or one beside each picture"
        )
    return known[:n], {"paired_by": source.captions_from}


def towers_of(o: argparse.Namespace, protocol: Protocol) -> Towers:
    """The image and the text tower that --agreement names."""
    device = device_of(o)
    if o.agreement == "align":
        from diffdistill.evaluation.agreement.align import AlignFeatures

        with in_options():
            return AlignFeatures(device=device)
    if protocol.clip_model is not None:
        for name, given in (("clip_model", o.clip_model), ("clip_prefix", o.clip_prefix)):
            if given not in (None, getattr(protocol, name)):
                raise UserError(f"--{name} {given!r}: {protocol} has {getattr(protocol, name)!r}; leave the option out")
    elif o.clip_model is None:
        raise UserError(f"{protocol} names no CLIP; add --clip_model MODEL/TAG, as ViT-B-32-quickgelu/openai")
    else:
        protocol = replace(protocol, clip_model=o.clip_model, clip_prefix=o.clip_prefix or "")
    with in_options(weights="--clip_weights", allow_other_weights="--clip_weights_sha256"):
        return protocol.build_clip(o.clip_weights, device, o.clip_weights_sha256 or False)


def texts_of(towers: Towers, captions: Sequence[str]) -> Tensor:
    """A row a caption; equal ones are embedded once."""
    import torch

    place = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    return towers.text(list(place))[torch.tensor([place[caption] for caption in captions])]


def agreement_numbers(
    towers: Towers, pictures: FeatureRows, captions: Sequence[str], texts: Tensor | None = None
) -> dict[str, Any]:
    """The numbers under the towers' names, with the protocol the pictures were embedded under.

    Args:
        towers: which embedded them.
        pictures: rows of n pictures.
        captions: of each.
        texts: `texts_of` them, where it is known already.
    """
    from diffdistill.evaluation.agreement.scores import agreement, report

    texts = texts_of(towers, captions) if texts is None else texts
    try:
        found = agreement(pictures.features, texts, captions)
    except ValueError as error:
        raise UserError(f"{pictures.source}: {error}") from error
    return {**report(towers, found), f"{towers.kind}_protocol": pictures.protocol}
