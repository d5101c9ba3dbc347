"""The network of a teacher or a student, with one signature for every diffusers class.

    x_t, time, cond ---> Backbone.forward ---> inner (a diffusers model) ---> a tensor of x_t's shape

A family of pipelines subclasses `Backbone` (`models.families`). `Denoiser` calls a backbone; LoRA, attention kernels,
gradient checkpointing and export work on `inner`; a critic reads a tap.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffdistill.diffusion.condition import Condition


class Backbone(nn.Module):
    """A diffusers network that is called as network(x_t, time, cond).

    Attributes:
        inner: the diffusers model. What is exported is this module.
        bottleneck: name of the tap that a critic reads by default.
    """

    bottleneck: str

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner

    @abstractmethod
    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """Predict.

        Args:
            x_t: noisy latents (B, C, h, w).
            time: (B,), in the units in which the network was trained (`Schedule.network_time`).
            cond: condition of B rows, from the family's `embed`.

        Returns:
            Tensor of x_t's shape.
        """

    @abstractmethod
    def taps(self) -> dict[str, nn.Module]:
        """Modules whose outputs are inner features, by name ("down.0", "mid", "block.7"), in the order they run in."""

    @abstractmethod
    def tap_channels(self, name: str) -> int:
        """C of the feature map (B, C, h, w) that a tap gives."""

    def feature_map(self, output: Any, x_t: Tensor) -> Tensor:
        """The output of a tap's module as a map (B, C, h, w).

        Args:
            output: the output of the module; if it is a tuple, its first entry is taken.
            x_t: the input of the network, (B, C, h, w).
        """
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def in_own_dtype(self, x: Tensor) -> Tensor:
        """A floating-point tensor in the dtype of the network's weights; a frozen teacher may be in bfloat16."""
        weight = next(self.inner.parameters(), None)
        return x if weight is None else x.to(weight.dtype)


Network = TypeVar("Network", bound=nn.Module)


def full_copy(network: Network, dtype: torch.dtype = torch.float32) -> Network:
    """An independent, trainable copy.

    Args:
        network: a network without adapters, because these would be copied as weights of their own.
        dtype: dtype of the copy. Weights in bfloat16 lose small updates.

    Raises:
        ValueError: the network has adapters.
    """
    if any("lora_" in name for name, _ in network.named_parameters()):
        raise ValueError("the network has LoRA adapters; copy it before they are added")
    return copy.deepcopy(network).to(dtype).requires_grad_(True).train()
