"""What tells one network or tokenizer from another: hashes of weights, and the settings that alter an answer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

# of CLIP's tokenizer; only others are named in `tokenizer_settings`
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
    """A diffusers network's, without what says where it came from and which version wrote it."""
    return {key: value for key, value in dict(network.config).items() if not key.startswith("_")}


def tokenizer_settings(tokenizer: Any) -> dict[str, Any]:
    """All that the ids of a prompt depend on in a CLIP tokenizer.

    These are its vocabulary and merges ("model") and its longest prompt ("length"). Tokens that were added, special
    tokens and sides are there where they are not CLIP's own. Case and word boundaries are the class's.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]  # the rest of it changes from call to call
    found: dict[str, Any] = {"model": model, "length": tokenizer.model_max_length}
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


def pipeline_settings(pipeline: Any) -> list[dict[str, Any]]:
    """Of a pipeline's UNet, autoencoder and tokenizer; beside the last, whether prompts are masked."""
    text = tokenizer_settings(pipeline.tokenizer)
    if getattr(pipeline.text_encoder.config, "use_attention_mask", False):
        text["mask"] = True
    return [network_settings(pipeline.unet), network_settings(pipeline.vae), text]
