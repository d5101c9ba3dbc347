"""What the training loop asks of a recipe, and all that it knows of one."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.distill.randomness import SampleRandom
from diffdistill.errors import UserError

# `Method.free` of a method with these settings, by dotted name
FREE_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "teacher.attention": "which kernel computes attention; equal up to rounding",
        "export.half": "how the product is stored",
    }
)

Batch = dict[str, Any]
Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a network that are trained at a learning rate of their own.

    Args:
        pattern: regular expression; it takes the parameters in whose names it is found (`re.search`).
        learning_rate: AdamW's for them; the schedule of `training` multiplies it as it does every learning rate.
        weight_decay: AdamW's for them; None for the network's.

    Raises:
        UserError: the pattern is no regular expression, or a number is out of its range.
    """

    pattern: str
    learning_rate: float
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"the pattern {self.pattern!r} is no regular expression: {error}") from error
        _check_adamw(self.learning_rate, self.weight_decay or 0.0)


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW for one network.

    Args:
        learning_rate: peak learning rate; the schedule of `training` multiplies it.
        betas: decay rates of the two moments.
        weight_decay: decoupled weight decay.
        eps: what is added to the root of the second moment.
        groups: parameters with a learning rate of their own. A parameter belongs to the first group that takes it; all
            others have the settings above. A group that takes no parameter is an error when training starts.

    Raises:
        UserError: a number is out of its range.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    groups: tuple[ParameterGroup, ...] = ()

    def __post_init__(self) -> None:
        _check_adamw(self.learning_rate, self.weight_decay)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}; both must be in [0, 1)")
        if not 0 < self.eps < math.inf:
            raise UserError(f"eps is {self.eps}; it must be above 0")


def _check_adamw(learning_rate: float, weight_decay: float) -> None:
    if not 0 < learning_rate < math.inf:
        raise UserError(f"a learning rate is {learning_rate}; it must be above 0")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay is {weight_decay}; it must be a number from 0")


@dataclass(frozen=True)
class Phase:
    """One update: a loss, its backward pass, and one optimiser step of each network that it trains.

    `loss(batch, random, carry)` returns the loss and scalars for the log. `carry` is a dict that lives for one
    micro-batch of one step: what an earlier phase made (a generated sample, say) and a later one uses.

    Args:
        name: the phase's name in the log and in errors.
        trains: key of the network that the phase updates, or several keys. Each network has an optimiser, a gradient
            norm and a clipping of its own; where one network's gradient is not finite, none of them is updated.
        loss: the loss of a micro-batch, a mean over its samples.
        whole_batch: the loss looks at all samples of a process at once, as a contrastive loss does: training then
            refuses gradient accumulation, so that a process has one micro-batch a step. Samples of other processes
            come through `SampleRandom.gather`.
    """

    name: str
    trains: str | tuple[str, ...]
    loss: Callable[[Batch, SampleRandom, dict[str, Any]], Loss]
    whole_batch: bool = False

    @property
    def networks(self) -> tuple[str, ...]:
        """Keys of the networks that the phase updates."""
        return (self.trains,) if isinstance(self.trains, str) else self.trains


@dataclass(frozen=True)
class Validation:
    """What a method shows of its present weights.

    Args:
        images: (N, 3, H, W) in [0, 1], a grid of which is saved; None for none.
        numbers: go into the log as "validation/NAME".
    """

    images: Tensor | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


class Method(ABC):
    """A recipe: its networks, their optimisers, the phases of a step, what it samples and what it exports.

    The loop wraps what is in `networks` for the device and for several processes and writes the wrapped modules
    back, so a method must call its networks through this dict and keep no other reference to one it trains.

    The loop calls, in this order: `prepare(device)` once; then in each step it sets `progress`, and calls
    `begin_step(step)`, `batch(...)` for each micro-batch, `phases(step)`, and each phase's loss.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, OptimizerSettings]
    averaged: str  # key of the network of which an exponential moving average is kept
    # networks that are run and never updated (a teacher, an autoencoder, a text encoder): they have to be placed too
    frozen: Mapping[str, nn.Module] = MappingProxyType({})
    device = torch.device("cpu")  # where training is; `prepare` sets it
    # digest of what was read from each setting that is a path (teacher, prompts, images), by its dotted name: a
    # continuation has the same content, wherever it lies. See `methods.content`
    content: Mapping[str, str] = MappingProxyType({})
    # settings that a continuation may change, since they alter no number of training; each with the reason
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

    def prepare(self, device: torch.device | str) -> None:
        """Move what is in `frozen` to the device; a method with caches extends this and makes them after the move.

        Called once, before the first step, on every process. The loop itself moves what is in `networks`.
        """
        self.device = torch.device(device)
        for network in self.frozen.values():
            network.to(self.device)

    def begin_step(self, step: int) -> None:
        """What changes once a step: an average that losses use moves on, a stage ends.

        Called once a step, after `progress` is set and before the step's batches, phases and losses. A continuation
        calls it for the steps it makes, with the same numbers. It may put other learning rates into `optimizers`.

        Args:
            step: steps done before this one, over all continuations.
        """

    @abstractmethod
    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        """The records as tensors on the method's device."""

    @abstractmethod
    def phases(self, step: int) -> list[Phase]:
        """Updates of one step, in order. It changes nothing, so it may be asked any number of times."""

    def validate(self) -> Validation:
        """Images and numbers of the present weights, always from the same noise and prompts.

        Called on the main process alone, without gradients, with the averaged weights in the network `averaged`.
        """
        return Validation()

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the product (a stock diffusers pipeline) with the networks' current weights into a new folder."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of the trained networks in the backward pass.

        Raises:
            UserError: the method has none.
        """
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


def check_eta(**values: float) -> None:
    """Raise UserError for a shift of ASD's later time that leads back, or nowhere."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}; the later time is not before t, so it is a number from 0 up")


def unwrap(module: nn.Module) -> Any:
    """The module itself, without a data-parallel wrapper."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module
