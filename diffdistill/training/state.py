"""All that a continuation needs of a run, in one object: captured for a checkpoint and restored from one.

    group of tensors         what it holds
    NAME                     the parameters of a network that require a gradient, by name
    NAME.optimizer           the tensors of its optimiser, keyed "moment/parameter name"; none before the first step
    ema                      the moving average, by parameter name
    rng-RANK                 the generator states of a process

The values beside them are plain numbers: the clock's, and the counts of updates averaged and skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from diffdistill.errors import UserError
from diffdistill.methods.base import Method, unwrap
from diffdistill.models.ema import Ema

from .clock import Clock
from .optimizers import make_optimizer
from .settings import TrainingSettings

TensorGroups = dict[str, dict[str, Tensor]]


@dataclass
class TrainingState:
    """What training changes.

    Args:
        networks: without data-parallel wrappers.
        optimizers: of those networks that are updated, by the same keys.
        ema: moving average of one of them.
        clock: how far the run is.
        skipped: updates that were left out because a loss or gradient was not finite.
        follows_progress: whether a step has read the method's `progress`, so that the run's length has to stay.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.AdamW]
    ema: Ema
    clock: Clock
    skipped: int = 0
    follows_progress: bool = False

    @classmethod
    def of(cls, method: Method, settings: TrainingSettings, device: torch.device) -> TrainingState:
        """The state at the start of a run: the method's networks, moved to the device, and nothing done yet.

        Raises:
            UserError: a parameter group takes no parameter.
            ValueError: a network that has an optimiser has no parameter that requires a gradient.
        """
        networks = {name: unwrap(network).to(device) for name, network in method.networks.items()}
        optimizers = {name: make_optimizer(name, networks[name], each) for name, each in method.optimizers.items()}
        ema = Ema(networks[method.averaged], settings.ema_decay, settings.ema_warmup)
        return cls(networks, optimizers, ema, Clock(settings))

    def capture(self) -> tuple[TensorGroups, dict[str, Any]]:
        """Groups of tensors, and plain values. All processes have to call it: each has generators of its own."""
        tensors = {name: _trainable(network) for name, network in self.networks.items()}
        for name, optimizer in self.optimizers.items():
            tensors[f"{name}.optimizer"] = _optimizer_tensors(self.networks[name], optimizer)
        tensors["ema"] = self.ema.shadow
        for rank, generator_states in enumerate(gather_object([_generator_states()])):
            tensors[f"rng-{rank}"] = generator_states
        values = {
            **self.clock.values(),
            "skipped": self.skipped,
            "ema_updates": self.ema.updates,
            "follows_progress": self.follows_progress,
        }
        return tensors, values

    def restore(self, tensors: Mapping[str, dict[str, Tensor]], values: Mapping[str, Any], rank: int) -> None:
        """Go on from what was captured.

        Args:
            tensors, values: of `capture`.
            rank: this process's; a process that the run had not before keeps its generators as they are.

        Raises:
            UserError: a network has other parameters than the captured one.
        """
        for name, network in self.networks.items():
            load_trainable(name, network, tensors[name])
        for name, optimizer in self.optimizers.items():
            _load_optimizer(self.networks[name], optimizer, tensors[f"{name}.optimizer"])
        self.ema.load(tensors["ema"], values["ema_updates"])
        self.clock.restore(values)
        self.skipped, self.follows_progress = values["skipped"], values["follows_progress"]
        if (mine := tensors.get(f"rng-{rank}")) is not None:
            _set_generator_states(mine)


def _trainable(network: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable(name: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's weights into a network; UserError where their names differ."""
    own = _trainable(network)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise UserError(
            f"the checkpoint does not fit the network {name}: {len(odd)} parameter names differ, {odd[0]} for one"
        )
    for key, p in own.items():
        p.copy_(tensors[key])


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
    return {f"{key}/{names[p]}": value for p, state in optimizer.state.items() for key, value in state.items()}


def _load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    for key, value in tensors.items():
        moment, name = key.split("/", 1)
        p = parameters[name]
        # the fused optimiser wants its step counter where the parameter is
        like = value.to(p.device, torch.float32) if moment == "step" else torch.empty_like(p).copy_(value)
        optimizer.state[p][moment] = like


def _generator_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generator_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
