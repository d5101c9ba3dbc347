"""Exponential moving averages of a network's trainable weights.

`Ema` is the average that the training loop keeps for the product, in float32. A method that calls an averaged network
within a step keeps an `averaged_copy` among its networks, without an optimiser. The parameters of the copy stay marked
as trainable, so checkpoints hold them and a continuation is exact; but they never get a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Ema:
    """shadow <- decay * shadow + (1 - decay) * weight, for parameters that require a gradient.

    Args:
        module: the network.
        decay: decay at each update, from 0 to below 1.
        warmup: whether the decay at update k is at most (1 + k) / (10 + k), so that the average of a short run does not
            consist of its start.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone().float() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        weights = [p.detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - decay)

    def load(self, shadow: dict[str, Tensor], updates: int) -> None:
        """Continue from saved values.

        Raises:
            KeyError: a parameter is missing.
            RuntimeError: a parameter has another shape.
        """
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
        self.updates = updates

    @contextmanager
    def applied(self, values: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Within the block the network holds the averaged weights, or `values` in their place.

        Raises:
            KeyError: one of the values is missing.
            RuntimeError: one has another shape.
        """
        saved = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._write(self.shadow if values is None else {name: values[name] for name in self.shadow})
            yield
        finally:
            self._write(saved)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            p.copy_(values[name])


def averaged_copy(network: Network) -> Network:
    """An independent copy of a network, which `follow` updates."""
    return copy.deepcopy(network)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """average <- d average + (1 - d) network, for parameters that require a gradient; buffers are copied.

    Args:
        average: the averaged network, which is changed in place.
        network: a network of the same architecture.
        decay: the largest d.
        updates: number of updates before this one; at first d is (1 + updates) / (10 + updates), as in `Ema`.
    """
    d = min(decay, (1 + updates) / (10 + updates))
    weights = dict(network.named_parameters())
    pairs = [(p, weights[name]) for name, p in average.named_parameters() if p.requires_grad]
    torch._foreach_lerp_([a for a, _ in pairs], [b.to(a) for a, b in pairs], 1.0 - d)
    for mine, other in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(other)
