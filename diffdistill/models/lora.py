"""LoRA adapters on one shared network. With the adapters off it is the teacher, and with them on it is the fake score.

So memory holds the base weights once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffdistill.errors import UserError

from .backbone import Backbone


def add_lora(backbone: Backbone, rank: int, alpha: float, targets: Sequence[str]) -> Backbone:
    """Put LoRA adapters on the network itself and leave them on; only the adapters require a gradient.

    The adapters are float32, whatever the dtype of the weights that they adapt.

    Args:
        backbone: the network, which is changed in place and returned.
        rank: rank of the adapters.
        alpha: scale of the adapters times their rank.
        targets: endings of the names of the layers that get an adapter.

    Raises:
        UserError: no layer's name ends in one of the targets, or a layer cannot have an adapter.
    """
    from peft import LoraConfig

    inner: Any = backbone.inner
    scale: Any = alpha  # peft's type hint is int, but fractions work
    names = [name for name, _ in inner.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"lora.targets: no layer's name ends in {target!r}; to_q, to_k, to_v, conv1 are such names")
    try:
        inner.add_adapter(LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets)), adapter_name="fake")
    except ValueError as error:
        raise UserError(f"lora.rank {rank}, lora.targets {', '.join(targets)}: {error}") from error
    for parameter in inner.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return backbone


@contextmanager
def adapters_off(backbone: Backbone) -> Iterator[None]:
    """Within the block the network is the teacher again. One without adapters stays as it is."""
    inner: Any = backbone.inner
    if not getattr(inner, "peft_config", None):
        yield
        return
    inner.disable_adapters()
    try:
        yield
    finally:
        inner.enable_adapters()
