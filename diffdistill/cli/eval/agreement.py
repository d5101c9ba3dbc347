"""`--agreement align|clip`: its options, the towers, and the captions of the images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from diffdistill.cli.arguments import as_options
from diffdistill.cli.eval.options import device_of, in_options
from diffdistill.cli.paths import find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.data.source import Source
    from diffdistill.evaluation.agreement.scores import Towers
    from diffdistill.evaluation.agreement.towers import PairedCaptions
    from diffdistill.evaluation.protocols import Protocol

_CLIP = ("clip_model", "clip_prefix", "clip_weights", "clip_weights_sha256")


def agreement_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of agreement between images and captions."""
    group = parser.add_argument_group("agreement of images and captions, which needs no reference")
    group.add_argument("--agreement", choices=("align", "clip"), help="the towers that measure agreement")
    group.add_argument(
        "--captions",
        help="a caption for each image: .txt (one per line, in the order of the images), or .jsonl, .csv, .tsv or "
        "COCO's .json, which may name their images; by default the .txt or .json file beside each image, or a "
        "generator's prompts",
    )
    clip_options(group)


def clip_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that name a CLIP model and its weights."""
    model = "model and weights of open_clip, where the protocol names none"
    parser.add_argument("--clip_model", metavar="MODEL/TAG", help=model)
    parser.add_argument("--clip_prefix", help="text before every caption, where the protocol names no CLIP")
    parser.add_argument("--clip_weights", help="CLIP's weights: a file, or download")
    other = "sha256 of CLIP's weights, where they are not the published ones"
    parser.add_argument("--clip_weights_sha256", help=other)


def check_clip(o: argparse.Namespace) -> None:
    """Refuse CLIP's options without CLIP, and a model that is not written as MODEL/TAG."""
    for name in _CLIP:
        if getattr(o, name) is not None and o.agreement != "clip":
            raise UserError(f"--{name} needs --agreement clip")
    if o.clip_model is not None and not all(o.clip_model.partition("/")):
        raise UserError(f"--clip_model {o.clip_model} should be MODEL/TAG, such as ViT-B-32-quickgelu/openai")


def check_agreement(o: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is read."""
    if o.agreement is None and o.captions is not None:
        raise UserError("--captions needs --agreement align or --agreement clip")
    check_clip(o)
    if o.captions is not None and o.model is not None:
        raise UserError("--captions is for --images; the captions of --model are its --prompts")
    if o.agreement is not None and o.on_corrupt == "skip":
        raise UserError("--agreement needs every image with its caption; leave out --on_corrupt skip")


def captions_of(o: argparse.Namespace, source: Source, n: int) -> PairedCaptions:
    """The captions of the first n images: those of --captions, or those that the source comes with."""
    from diffdistill.evaluation.agreement.towers import paired_captions

    with as_options(captions="--captions"):
        return paired_captions(None if o.captions is None else find(o.captions), source, n)


def towers_of(o: argparse.Namespace, protocol: Protocol) -> Towers:
    """The image and the text tower that --agreement names."""
    from diffdistill.evaluation.agreement.towers import build_towers

    device = device_of(o)
    if o.agreement == "clip":
        protocol = _with_clip(o, protocol)
    weights = {"weights": "--clip_weights", "allow_other_weights": "--clip_weights_sha256"}
    with in_options(**(weights if o.agreement == "clip" else {})):
        return build_towers(o.agreement, protocol, o.clip_weights, device, o.clip_weights_sha256 or False)


def _with_clip(o: argparse.Namespace, protocol: Protocol) -> Protocol:
    """The protocol with the CLIP model that the options name, where it names none itself."""
    if protocol.clip_model is not None:
        for name, given in (("clip_model", o.clip_model), ("clip_prefix", o.clip_prefix)):
            if given not in (None, getattr(protocol, name)):
                raise UserError(f"--{name} {given!r}: {protocol} has {getattr(protocol, name)!r}; leave the option out")
        return protocol
    if o.clip_model is None:
        raise UserError(f"{protocol} names no CLIP; add --clip_model MODEL/TAG, such as ViT-B-32-quickgelu/openai")
    return replace(protocol, clip_model=o.clip_model, clip_prefix=o.clip_prefix or "")
