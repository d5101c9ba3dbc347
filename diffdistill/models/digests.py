"""What tells one network or tokenizer from another: hashes of weights, and the settings that change an output."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .families import Family

# special tokens of CLIP's tokenizer; `tokenizer_settings` names them only where they differ from these
_SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


def weights_digest(network: Any) -> str:
    """Hash of the names, shapes, types and values of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def network_settings(network: Any) -> dict[str, Any]:
    """Settings of a diffusers network that differ from its class's default values.

    So they stay the same if a release of diffusers adds a setting with a default value.
    """
    defaults = _defaults(type(network))
    settings = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
    return {k: v for k, v in settings.items() if k not in defaults or _plain(v) != _plain(defaults[k])}


# settings that change no output of a text encoder that is loaded and frozen
_SILENT = {
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "torch_dtype",
    "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "initializer_range", "initializer_factor",
    "use_cache",
}  # fmt: skip


def encoder_settings(text_encoder: Any) -> dict[str, Any]:
    """Settings of a transformers text encoder that differ from its class's default values and change its output."""
    config = text_encoder.config
    names = [n for n in inspect.signature(type(config).__init__).parameters if hasattr(config, n) and n not in _SILENT]
    names = [name for name in names if not name.endswith("dropout")]
    default = type(config)()
    found = {name: _plain(getattr(config, name)) for name in names}
    found = {name: value for name, value in found.items() if value != _plain(getattr(default, name, None))}
    if getattr(config, "use_attention_mask", False):  # masks prompts; the class itself has no such setting
        found["use_attention_mask"] = True
    return found


def _defaults(cls: Any) -> dict[str, Any]:
    """The default values of a class's arguments, and of those that it passes on to the class above it."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    own = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) and cls.__base__ is not object
    return {**_defaults(cls.__base__), **own} if passes_on else own


def _plain(value: Any) -> Any:
    """A value as JSON returns it, with a list for a tuple."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """Everything in a tokenizer that the ids of a prompt depend on.

    These are its vocabulary and merges ("model") and the length of its longest prompt ("length"). Added tokens, special
    tokens and sides are there if they are not CLIP's own. In CLIP's tokenizers, case and word boundaries depend on the
    class alone; other tokenizers have settings for them ("around").
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())  # its truncation and padding change from call to call
    model = whole["model"]
    found: dict[str, Any] = {"model": model, "length": tokenizer.model_max_length}
    if not type(tokenizer).__name__.startswith("CLIP"):
        found["around"] = {key: whole[key] for key in ("normalizer", "pre_tokenizer", "post_processor")}
    special = set(tokenizer.all_special_tokens)
    if added := {token: i for token, i in tokenizer.get_added_vocab().items() if token not in special}:
        found["added"] = added
    names = {name: str(token) for name in _SPECIAL if (token := getattr(tokenizer, name)) is not None}
    own = {name: [token, tokenizer.convert_tokens_to_ids(token)] for name, token in names.items()}
    if own != {name: [token, model["vocab"].get(token)] for name, token in _SPECIAL.items()}:
        found["special"] = own
    for side in ("padding_side", "truncation_side"):
        if getattr(tokenizer, side) != "right":
            found[side] = getattr(tokenizer, side)
    return found


def pipeline_settings(family: Family, pipeline: Any) -> dict[str, Any]:
    """Settings of all parts of a pipeline that its images depend on, by the parts' names."""
    defaults = _defaults(type(pipeline))
    own = {key: value for key, value in pipeline.config.items() if isinstance(value, bool | int | float | str)}
    own.pop("requires_safety_checker", None)
    found: dict[str, Any] = {k: v for k, v in own.items() if k in defaults and v != defaults[k]}
    for name, part in family.parts.items():
        if (loaded := getattr(pipeline, name)) is None:
            continue
        if part.tokenizer:
            found[name] = tokenizer_settings(loaded)
        else:
            found[name] = (network_settings if part.library == "diffusers" else encoder_settings)(loaded)
    return found
