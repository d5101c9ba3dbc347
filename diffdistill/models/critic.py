"""A discriminator as a small head on the fake score's own bottleneck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn

from diffdistill.distill import DiscriminatorHead
from diffdistill.errors import UserError

from .network import UNet


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
