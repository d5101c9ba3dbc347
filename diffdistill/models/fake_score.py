"""The fake score's network: a full copy of the teacher, or adapters on the one shared network.

With adapters, off is the teacher and on is the fake score, so one copy of the base weights is in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .network import UNet


def full_copy(network: UNet) -> UNet:
    """An independent, trainable copy."""
    return copy.deepcopy(network).requires_grad_(True).train()


def add_lora(network: UNet, rank: int, alpha: float, targets: Sequence[str]) -> UNet:
    """Put LoRA adapters on the network itself and leave them on; only they require a gradient."""
    from peft import LoraConfig

    unet: Any = network.unet
    scale: Any = alpha  # peft's type says int; fractions work
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets)), adapter_name="fake")
    return network


@contextmanager
def adapters_off(network: UNet) -> Iterator[None]:
    """Within the block the network is the teacher again."""
    unet: Any = network.unet
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()
