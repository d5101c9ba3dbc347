"""AdamW for a method's networks: parameter groups, learning rates, clipping, and updates that a device may leave out.

Notable:
- nothing here waits for the device. Whether a loss and its gradients are finite is a tensor; clipping multiplies by
  exactly 1 where the norm is within its limit; and the fused AdamW leaves weights, moments and its step count as they
  are where that tensor says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError
from diffdistill.methods.base import OptimizerSettings


def make_optimizer(name: str, network: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW for the parameters of a network that require a gradient.

    Args:
        name: the network's, for errors.
        network: without a data-parallel wrapper, since parameter groups go by parameter names.
        settings: learning rate and the rest; parameters of `settings.groups` have their own.

    Raises:
        UserError: a group takes no parameter.
        ValueError: the network has no parameter that requires a gradient.
    """
    named = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
    taken: list[list[nn.Parameter]] = [[] for _ in range(1 + len(settings.groups))]  # the first: by no pattern
    for key, parameter in named:
        place = next((i for i, group in enumerate(settings.groups, 1) if re.search(group.pattern, key)), 0)
        taken[place].append(parameter)
    for group, parameters in zip(settings.groups, taken[1:], strict=True):
        if not parameters:
            raise UserError(
                f"the pattern {group.pattern!r} takes no parameter of the network {name}; it should be found in a "
                f"name such as {named[0][0] if named else 'none'}, and an earlier pattern goes first"
            )
    decays = [settings.weight_decay if g.weight_decay is None else g.weight_decay for g in settings.groups]
    decay = [settings.weight_decay, *decays]
    groups = [{"params": p, "weight_decay": decay[i], "place": i} for i, p in enumerate(taken) if p]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, factor: float) -> None:
    """Give each parameter group its learning rate times `factor`; `settings` may be others than at the start."""
    rates = [settings.learning_rate, *(group.learning_rate for group in settings.groups)]
    for group in optimizer.param_groups:
        group["lr"] = rates[group["place"]] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to the norm `limit` where it is above; returns the norm that it was, a tensor of shape ().

    Within the limit the gradients keep their bits.
    """
    those = [p for p in parameters if p.requires_grad and p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in those if p.grad is not None])
    if limit < math.inf:
        # torch multiplies by min(1, limit / (norm + 1e-6)), which rounding may put below 1 at a norm just within the
        # limit; a norm of 0 makes it 1. Compared in float64, in which both sides are exact enough
        above = torch.where(norm.double() + 1e-6 > limit, norm, 0.0)
        torch.nn.utils.clip_grads_with_norm_(those, limit, above)
    return norm


def step_where(optimizer: torch.optim.AdamW, good: Tensor) -> None:
    """One step of the optimiser where `good`, bool of shape (), is true; otherwise nothing changes. No host waits."""
    fused: Any = optimizer
    fused.found_inf = good.logical_not().float()  # the fused kernel reads it on the device, as for a GradScaler
    optimizer.step()
