"""Digests of what a run is made from: a path is compared by what is read there, never by how it is spelled.

A method keeps one in `Method.content` for each argument that is a path. It covers all that training reads from that
path (names and captions beside pictures, settings beside weights) and nothing of where it lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffdistill.models.teacher import Teacher, weights_digest

if TYPE_CHECKING:  # a run from prompts alone needs no pictures
    from diffdistill.data.emoji import EmojiSet

# of a text encoder's settings those that its weights do not show
_ENCODER = (
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "eos_token_id",
    "use_attention_mask",
)
# case, digits, marks, accents: what tokenizers differ in
_PROBE = ("A Photo", "the cat's", "12 hats", "caf\u00e9!", "")


def digest(*parts: Tensor | str | Sequence[str] | Sequence[int] | None) -> str:
    """Hash of tensors and texts; parts and their ends tell: ("ab", "c") is not ("a", "bc").

    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{tuple(part.shape)} {part.dtype} ".encode())
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
        else:
            found.update(json.dumps(part if part is None or isinstance(part, str) else list(part)).encode() + b"\n")
    return found.hexdigest()[:16]


def of_pictures(pictures: EmojiSet) -> str:
    """Of a captioned image set: pixels, names and styles, in order."""
    return digest(pictures.images, pictures.names, pictures.styles)


def of_network(network: Any) -> str:
    """Of a diffusers network: weights and settings (an autoencoder's scaling factor, say)."""
    return digest(weights_digest(network), _settings(network))


def of_text(tokenizer: Any, text_encoder: Any) -> str:
    """Of a tokenizer and its text encoder: weights, settings, and the ids of a few texts."""
    settings = json.dumps({key: getattr(text_encoder.config, key, None) for key in _ENCODER}, default=str)
    added = json.dumps(tokenizer.get_added_vocab(), sort_keys=True)
    length = tokenizer.model_max_length
    found = tokenizer(list(_PROBE), truncation=True, max_length=min(length, 77))["input_ids"]
    ids = json.dumps([found, tokenizer.pad_token_id, length])
    return digest(weights_digest(text_encoder), settings, added, ids)


def of_teacher(teacher: Teacher) -> str:
    """Of a pipeline: schedule, kind of prediction, networks, tokenizer, and weights and settings of all."""
    return digest(teacher.digest(), of_text(teacher.pipeline.tokenizer, teacher.pipeline.text_encoder))


def _settings(network: Any) -> str:
    """Without what says where a network came from and which version wrote it."""
    kept = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)
