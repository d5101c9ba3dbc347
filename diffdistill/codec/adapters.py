"""LoRA adapters (arXiv 2106.09685) on the pretrained networks of a codec, and weights with the adapters merged.

The layers are those of DiT-IC's released code: in the autoencoder's decoder and in the transformer, the projections of
attention and the convolutions within blocks that are not depthwise. The autoencoder's encoder has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

AUTOENCODER_LAYERS = (
    r"decoder\.(.*\.)?(conv1|conv2|conv_in|conv_shortcut|conv_inverted|conv_point|to_q|to_k|to_v|to_out)"
)
TRANSFORMER_LAYERS = r"(.*\.)?(to_q|to_k|to_v|to_out\.0|conv_inverted|conv_point|proj_out)"
NAME = "codec"


def add_adapters(network: nn.Module, rank: int, layers: str) -> None:
    """Freeze a network and put adapters on some of its layers; only these require a gradient, and they start as zero.

    Args:
        network: changed in place.
        rank: of the adapters, and their alpha; 0 for none.
        layers: regular expression that matches the whole names of those layers.

    Raises:
        UserError: no layer has such a name.
    """
    network.requires_grad_(False)
    if rank == 0:
        return
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers)
    try:
        inject_adapter_in_model(settings, network, adapter_name=NAME)
    except ValueError as error:
        raise UserError(f"a {type(network).__name__} has no layer that adapters go on: {error}") from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


def is_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


@torch.no_grad()
def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of the same network without adapters that computes the same, by the names that it has then."""
    found = {
        name.replace(".base_layer.", "."): value.detach()
        for name, value in network.state_dict().items()
        if not is_adapter(name)
    }
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight"):
            layer: Any = module
            found[f"{name}.weight"] = found[f"{name}.weight"] + layer.get_delta_weight(NAME)
    return found
