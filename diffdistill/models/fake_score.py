"""The fake score's network: a full copy of the teacher, or adapters on the one shared network.

With adapters, off is the teacher and on is the fake score, so one copy of the base weights is in memory. A
discriminator, where one is wanted, is a small head on the fake score's own bottleneck.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn

from diffdistill.distill import DiscriminatorHead
from diffdistill.errors import UserError

from .network import UNet


def full_copy(network: UNet) -> UNet:
    """An independent, trainable copy."""
    return copy.deepcopy(network).requires_grad_(True).train()


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


class ScoreWithCritic(nn.Module):
    """A fake score with a discriminator's head on its bottleneck, as in DMD2 (arXiv 2405.14867).

    forward: x_t (B, C, H, W), time (B,), cond (B, L, D), as the score's alone; with `real`, real samples noised to the
    same times, also the logits (B, 1) of x_t and of `real`.

    Raises:
        UserError: the UNet has no middle block.
    """

    def __init__(self, network: UNet, hidden: int = 128) -> None:
        super().__init__()
        self.network = network
        unet: Any = network.unet
        if unet.mid_block is None:
            raise UserError("real_images: the discriminator reads the UNet's middle block, and this one has none")
        self.head = DiscriminatorHead(unet.config.block_out_channels[-1], hidden)

    @property
    def unet(self) -> nn.Module:
        return self.network.unet

    def forward(
        self, x_t: Tensor, time: Tensor, cond: Tensor, real: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if real is None:
            value: Tensor = self.network(x_t, time, cond)
            return value
        features: list[Tensor] = []
        with _hook(self.unet, lambda module, inputs, output: features.append(output)):
            value = self.network(x_t, time, cond)
        return value, self.head(features[0]), self.logits(real, time, cond)

    def logits(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """Logits (B, 1) alone: the passes end at the bottleneck."""
        try:
            with _hook(self.unet, _stop):
                self.network(x_t, time, cond)
        except _ReachedError as reached:
            logits: Tensor = self.head(reached.features)
            return logits
        raise RuntimeError("the UNet did not run its middle block")


class _ReachedError(Exception):
    """Not a fault: ends a pass at the bottleneck and carries its features."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


def _stop(module: Any, inputs: Any, output: Tensor) -> NoReturn:
    raise _ReachedError(output)


@contextmanager
def _hook(unet: Any, hook: Any) -> Iterator[None]:
    handle = unet.mid_block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
