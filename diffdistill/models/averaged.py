"""A network's moving average as a network, for a method that judges or aims with it.

The loop keeps one average, of weights, for the product. A method that runs averaged weights within a step keeps such a
copy among its `networks`, without an optimiser: its parameters stay marked as trainable, so checkpoints hold them and
a continuation is exact, and nothing ever gives them a gradient.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def averaged_copy(network: Network) -> Network:
    """An independent copy to be kept up by `follow`."""
    return copy.deepcopy(network)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """average <- d average + (1 - d) network for parameters that require a gradient; buffers are copied.

    Args:
        average, network: of one architecture.
        decay: d at the most.
        updates: how many there were before; early on d is (1 + updates) / (10 + updates), as of `training.ema`.
    """
    d = min(decay, (1 + updates) / (10 + updates))
    weights = dict(network.named_parameters())
    pairs = [(p, weights[name]) for name, p in average.named_parameters() if p.requires_grad]
    torch._foreach_lerp_([a for a, _ in pairs], [b.to(a) for a, b in pairs], 1.0 - d)
    for mine, other in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(other)
