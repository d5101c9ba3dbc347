"""Exponential moving average of a network's trainable weights, kept in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """shadow <- decay * shadow + (1 - decay) * weight, for parameters that require a gradient.

    With `warmup` the decay at update k is at most (1 + k) / (10 + k), so that a short run is not an average of its
    start.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone().float() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        weights = [p.detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - decay)

    def load(self, shadow: dict[str, Tensor], updates: int) -> None:
        """Continue from saved values; names and shapes must be the same (KeyError, RuntimeError)."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network holds the averaged weights."""
        saved = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(saved)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            p.copy_(values[name])
