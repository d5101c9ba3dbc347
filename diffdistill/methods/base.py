"""The interface of a method; the training loop knows nothing else of one."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffdistill.distill.randomness import SampleRandom
from diffdistill.errors import UserError, shown

if TYPE_CHECKING:
    from diffdistill.models.teacher import Teacher

    from .settings import TeacherSettings

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
        pattern: regular expression; the group has the parameters whose names contain a match (`re.search`).
        learning_rate: their learning rate; the schedule of `training` multiplies it, as it does every learning rate.
        weight_decay: their weight decay; None for that of the network.

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
        eps: added to the root of the second moment.
        groups: parameters with a learning rate of their own. A parameter belongs to the first group that matches it;
            all others have the settings above. A group without parameters is an error when training starts.

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
        pair = self.betas if isinstance(self.betas, tuple | list) else ()
        if len(pair) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in pair):
            raise UserError(f"betas are {shown(self.betas)}; they must be two numbers in [0, 1), such as (0.9, 0.999)")
        if not (_is_number(self.eps) and 0 < self.eps < math.inf):
            raise UserError(f"eps is {shown(self.eps)}; it must be above 0")


def _check_adamw(learning_rate: float, weight_decay: float) -> None:
    if not (_is_number(learning_rate) and 0 < learning_rate < math.inf):
        raise UserError(f"a learning rate is {shown(learning_rate)}; it must be above 0")
    if not (_is_number(weight_decay) and 0 <= weight_decay < math.inf):
        raise UserError(f"weight_decay is {shown(weight_decay)}; it must be a number from 0")


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


@dataclass(frozen=True)
class Phase:
    """One update: a loss, its backward pass, and one optimiser step of each network that it trains.

    `loss(batch, random, carry)` returns the loss and scalars for the log. `carry` is a dict for one micro-batch of one
    step. An earlier phase puts values into it, such as a generated sample, that a later phase uses.

    Args:
        name: the phase's name in the log and in errors.
        trains: key of the network that the phase updates, or several keys. Each network has its own optimiser, gradient
            norm and clipping. If the gradient of one network is not finite, none of them is updated.
        loss: the loss of a micro-batch, a mean over its samples.
        whole_batch: whether the loss needs all samples of a process at once, as a contrastive loss does. Training then
            refuses gradient accumulation, so that a process has one micro-batch in a step. `SampleRandom.gather` gives
            the samples of other processes.
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
        images: (N, 3, H, W) in [0, 1], which are saved as a grid; None for none.
        numbers: numbers for the log, where they are called "validation/NAME".
        score: how bad the weights are, by which `training.export_best` chooses; None where the method has no opinion.
        remarks: lines for the user.
        protocol: what the score depends on beside the weights; scores of different protocols are not compared.
    """

    images: Tensor | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    remarks: tuple[str, ...] = ()
    protocol: str = ""


class Method(ABC):
    """A method: its networks, their optimisers, the phases of a step, its samples and its product.

    The loop wraps each module in `networks` for the device and for several processes, and puts the wrapped module back.
    So a method must call its networks through this dict, and keep no other reference to a network that it trains.

    The loop calls `prepare(device)` once. In each step it sets `progress`, and then calls `begin_step(step)`,
    `batch(...)` for each micro-batch, `phases(step)`, and the loss of each phase.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, OptimizerSettings]
    averaged: str  # key of the network of which an exponential moving average is kept
    # networks that are called but never updated (a teacher, an autoencoder, a text encoder); they are moved too
    frozen: Mapping[str, nn.Module] = MappingProxyType({})
    device = torch.device("cpu")  # the device of training; `prepare` sets it
    # for each setting that is a path (teacher, prompts, images), by its dotted name, a digest of what was read there. A
    # continuation must have the same content, but not the same path. See `methods.content`
    content: Mapping[str, str] = MappingProxyType({})
    # settings that a continuation may change, because they change no number of training; each with the reason
    free: Mapping[str, str] = MappingProxyType({})
    scores = False  # whether validations have a score
    steps_before = 0  # steps at the start in which not all that the method trains is trained
    _progress = 0.0
    progress_was_read = False  # whether it was read after it was last set

    @property
    def progress(self) -> float:
        """Share of the run that is done, from 0 to 1; the loop sets it before each step.

        A method that reads it in a step depends on the length of the run, so a continuation cannot change
        `training.samples`. So read it only if a setting follows it.
        """
        self.progress_was_read = True
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress, self.progress_was_read = value, False

    @abstractmethod
    def __len__(self) -> int:
        """Number of records (images or prompts), n. Sample i of a run is record permutation[i mod n]."""

    def prepare(self, device: torch.device | str) -> None:
        """Move the networks in `frozen` to the device. A method with caches extends this and fills them afterwards.

        It is called once, before the first step, in every process. The loop itself moves the networks in `networks`.
        """
        self.device = torch.device(device)
        for network in self.frozen.values():
            network.to(self.device)

    def begin_step(self, step: int) -> None:
        """Do what happens once in a step: update an average that losses use, or end a stage.

        It is called once in a step, after `progress` is set and before the batches, phases and losses of the step. A
        continuation calls it for its own steps, with the same numbers. It may put other learning rates into
        `optimizers`.

        Args:
            step: number of steps before this one, over all continuations.
        """

    @abstractmethod
    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        """The records as tensors on the method's device."""

    @abstractmethod
    def phases(self, step: int) -> list[Phase]:
        """The updates of one step, in order. The call changes nothing, so it may be repeated."""

    def validate(self) -> Validation:
        """Images and numbers of the present weights, always from the same noise and prompts.

        It is called in the main process alone, without gradients and with the averaged weights in the network
        `averaged`.
        """
        return Validation()

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the product (a stock diffusers pipeline) with the networks' current weights into a new folder."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of the trained networks in the backward pass.

        Raises:
            UserError: the method cannot do so.
        """
        raise UserError(f"training.gradient_checkpointing: {type(self).__name__} cannot do it; set it to false")


def open_teacher(teacher: TeacherSettings) -> Teacher:
    """Load the teacher of a method.

    Raises:
        UserError: there are no settings but, for example, a folder alone; or as `TeacherSettings.load`.
    """
    if not hasattr(teacher, "load"):
        raise UserError(f"teacher is {shown(teacher)}; it must be settings, such as TeacherSettings('assets/teacher')")
    return teacher.load()


def check_shares(**values: float) -> None:
    """Raise UserError for a value outside [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} is {value}; it is a share, from 0 to 1")


def check_guidance(**values: float) -> None:
    """Raise UserError for a guidance scale that is negative or not finite. 1 is unguided, and 0 ignores the prompt."""
    for name, value in values.items():
        if not 0.0 <= value < math.inf:
            raise UserError(f"{name} is {value}; it must be a number from 0, where 1 is unguided")


def check_eta(**values: float) -> None:
    """Raise UserError for a shift of ASD's later time that is negative or not finite."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}; it must be a number from 0, because the later time is not before t")


@contextmanager
def without_autocast(network: nn.Module) -> Iterator[None]:
    """Within it, a network that accelerate has prepared computes in its weights' own precision."""
    wrapped, own = vars(network).get("forward"), vars(network).get("_original_forward")
    device = next(network.parameters()).device.type
    if wrapped is not None and own is not None:
        network.forward = own
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if wrapped is not None and own is not None:
            network.forward = wrapped


def unwrap(module: nn.Module) -> Any:
    """The module without a data-parallel wrapper."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module
