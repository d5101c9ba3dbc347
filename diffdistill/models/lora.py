"""LoRA adapters on the one shared network: off it is the teacher, on it is the fake score.

One copy of the base weights is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffdistill.errors import UserError

from .network import UNet


def add_lora(network: UNet, rank: int, alpha: float, targets: Sequence[str]) -> UNet:
    """Put LoRA adapters on the network itself and leave them on; only they require a gradient.

    Raises:
        UserError: a target that no layer's name ends in, or layers that adapters cannot be put on.
    """
    from peft import LoraConfig

    unet: Any = network.unet
    scale: Any = alpha  # peft's type says int; fractions work
    names = [name for name, _ in unet.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"lora_targets: no layer's name ends in {target!r}; to_q, to_k, to_v, conv1 are such names")
    try:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets)), adapter_name="fake")
    except ValueError as error:
        raise UserError(f"lora_rank {rank}, lora_targets {', '.join(targets)}: {error}") from error
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
