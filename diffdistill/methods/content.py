"""Digests of what a run is made from. A path is compared by what is read there, never by its spelling.

A method keeps a digest in `Method.content` for each argument that is a path. It covers all that training reads from the
path, such as names and captions beside images and settings beside weights, but not the path itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffdistill.models.digests import encoder_settings, network_settings, tokenizer_settings, weights_digest
from diffdistill.models.teacher import Teacher

if TYPE_CHECKING:
    from diffdistill.data.captioned import CaptionedData, CaptionedImages


def digest(*parts: Tensor | str | Sequence[str] | Sequence[int] | None) -> str:
    """Hash of tensors and texts. It also depends on where a part ends: ("ab", "c") is not ("a", "bc").

    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{tuple(part.shape)} {part.dtype} ".encode())
            found.update(part.detach().cpu().contiguous().numpy().data)
        else:
            found.update(json.dumps(part if part is None or isinstance(part, str) else list(part)).encode() + b"\n")
    return found.hexdigest()[:16]


def of_data(data: CaptionedData, images: CaptionedImages, name: str = "data") -> dict[str, str]:
    """Digests of captioned images, by setting: pixels, names and styles, in order, and captions if a file has them.

    Args:
        data: the settings.
        images: the images that were read.
        name: dotted name of the settings.
    """
    found = {f"{name}.source": digest(images.images, images.names, images.styles)}
    return found if data.captions is None else {**found, f"{name}.captions": digest(images.names)}


def of_network(network: Any) -> str:
    """Digest of a diffusers network: weights and settings, such as the scaling factor of an autoencoder."""
    return digest(weights_digest(network), json.dumps(network_settings(network), sort_keys=True, default=str))


def of_text(tokenizer: Any, text_encoder: Any) -> str:
    """Digest of a tokenizer and its text encoder: weights, settings, vocabulary and merges."""
    words = json.dumps(tokenizer_settings(tokenizer), sort_keys=True, default=str)
    settings = json.dumps(encoder_settings(text_encoder), sort_keys=True)
    return digest(weights_digest(text_encoder), settings, words)


def of_teacher(teacher: Teacher) -> str:
    """Digest of a teacher: schedule, prediction type, tokenizers, and weights and settings of all networks."""
    return teacher.digest()
