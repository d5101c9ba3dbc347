"""What the training loop asks of a recipe, and all that it knows of one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from diffdistill.distill.randomness import SampleRandom
from diffdistill.errors import UserError

# `Method.free` of a method with these arguments
FREE_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "attention": "which kernel computes attention; equal up to rounding",
        "half_export": "how the product is stored",
    }
)

Batch = dict[str, Any]
Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW for one network."""

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"a learning rate is {self.learning_rate}; it must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}; both must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay is {self.weight_decay}; it must be a number from 0")
        if not 0 < self.eps < math.inf:
            raise UserError(f"adam_eps is {self.eps}; it must be above 0")


@dataclass(frozen=True)
class Phase:
    """One update of one network.

    `loss(batch, random, carry)` returns the loss and scalars for the log. `carry` is a dict that lives for one
    micro-batch of one step: what an earlier phase made (a generated sample, say) and a later one uses.
    """

    name: str
    trains: str
    loss: Callable[[Batch, SampleRandom, dict[str, Any]], Loss]


class Method(ABC):
    """A recipe: its networks, their optimisers, the phases of a step, what it samples and what it exports.

    The loop wraps what is in `networks` for the device and for several processes and writes the wrapped modules
    back, so a method must call its networks through this dict and keep no other reference to one it trains.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, OptimizerSettings]
    averaged: str  # key of the network of which an exponential moving average is kept
    # digest of what was read from each argument that is a path (teacher, prompts, pictures), by the argument's name: a
    # continuation has the same content, wherever it lies. See `methods.content`
    content: Mapping[str, str] = MappingProxyType({})
    # arguments that a continuation may change, since they alter no number of training; each with the reason
    free: Mapping[str, str] = MappingProxyType({})
    _progress = 0.0
    progress_was_read = False  # since it was last set

    @property
    def progress(self) -> float:
        """Share of the run that is done, from 0 to 1; the loop sets it before each step.

        A method that reads it in a step depends on how long the run is, so `training.samples` then has to stay: read it
        only where something follows it.
        """
        self.progress_was_read = True
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress, self.progress_was_read = value, False

    @abstractmethod
    def __len__(self) -> int:
        """Number of records (images, prompts); sample i of a run is record permutation[i mod len]."""

    @abstractmethod
    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        """The records as tensors on the method's device."""

    @abstractmethod
    def phases(self, step: int) -> list[Phase]:
        """Updates of one step, in order."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the product (a stock diffusers pipeline) with the networks' current weights into a new folder."""

    def preview(self) -> Tensor | None:
        """Pictures for the validation grid, (N, 3, H, W) in [0, 1], always from the same noise and prompts."""
        return None

    def to(self, device: Any) -> None:
        """Move what is not in `networks` (a frozen teacher, caches) to the device."""

    def enable_gradient_checkpointing(self) -> None:
        raise UserError(f"training.gradient_checkpointing: {type(self).__name__} has none; set it to false")


def check_shares(**values: float) -> None:
    """Raise UserError for one outside [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} is {value}; it is a share, from 0 to 1")


def check_guidance(**values: float) -> None:
    """Raise UserError for a guidance scale that is negative or no number; 1 is unguided, 0 without the prompt."""
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise UserError(f"{name} is {value}; it must be a number from 0, where 1 is unguided")


def unwrap(module: nn.Module) -> Any:
    """The module itself, without a data-parallel wrapper."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module
