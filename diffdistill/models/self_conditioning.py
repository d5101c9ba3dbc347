"""Self-conditioning (DDAE++, arXiv 2505.10999): later blocks are conditioned on the network's own inner features.

    tap -> mean over positions -> LN -> W1 -> SiLU -> W2 -> times gamma(e) --(+ e)--> time embedding of the later blocks

where e is the time embedding, and a tap is a block whose output is read (`Backbone.taps`). W2 starts at zero, so at
first the network predicts what the plain one predicts, to the bit.

The paper says that features are fed to the decoder's blocks together with the time, scaled in a way that depends on
time, and that the block is chosen by the training loss of short runs. The form above is ours (docs/methods/ddae.md).
The name also stands for another method, which feeds the previous estimate of x0 back (arXiv 2208.04202).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError


@dataclass(frozen=True)
class SelfConditioning:
    """How a network is conditioned on its own features.

    Args:
        tap: the block whose output is read, such as "mid" or "up.0" of a UNet and "block.7" of a transformer. The
            blocks that run after it are conditioned. null for a plain network.
        width: width of the projection's hidden layer.

    Raises:
        UserError: the width is no whole number from 1 to 65,536.
    """

    tap: str | None = None
    width: int = 64

    def __post_init__(self) -> None:
        if type(self.width) is not int or not 1 <= self.width <= 65536:
            raise UserError(f"self_conditioning.width is {self.width!r}; it must be a whole number from 1 to 65,536")


def own_tap(network: Any) -> str | None:
    """The tap of a self-conditioned network; None for a plain one."""
    return str(network.config["self_conditioning"]["tap"]) if hasattr(network, "self_conditioner") else None


class Projection(nn.Module):
    """gamma(e) W2 SiLU(W1 LN(mean of the features)): what is added to the time embedding.

    Args:
        channels: C of the features.
        width: width of the hidden layer.
        embedding: D of the time embedding e.
        out: D of what the projection is added to.
    """

    def __init__(self, channels: int, width: int, embedding: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, out)
        self.gate = nn.Linear(embedding, 1)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias)

    def forward(self, pooled: Tensor, embedding: Tensor) -> Tensor:
        """What is added.

        Args:
            pooled: features (B, C), averaged over positions.
            embedding: time embedding e (B, D), the input of gamma.
        """
        hidden = torch.nn.functional.silu(self.linear_1(self.norm(pooled)))
        value: Tensor = self.gate(embedding) * self.linear_2(hidden)
        return value


def later_blocks(taps: Mapping[str, nn.Module], tap: str | None) -> list[nn.Module]:
    """The blocks that run after a tap, in order.

    Args:
        taps: the network's blocks by name, in the order they run in.
        tap: name of one of them.

    Raises:
        UserError: there is no such block, or none runs after it.
    """
    names = list(taps)
    if tap is None or tap not in names:
        raise UserError(f"self_conditioning.tap is {tap!r}; this network has {', '.join(names)}")
    later = [taps[name] for name in names[names.index(tap) + 1 :]]
    if not later:
        raise UserError(
            f"self_conditioning.tap is {tap!r}, the last block, so no block could be conditioned; take one of "
            f"{', '.join(names[:-1])}"
        )
    return later


@contextmanager
def conditioned(tap: nn.Module, later: Sequence[nn.Module], added: Any, position: int, name: str) -> Iterator[None]:
    """Within the block, the later blocks get their time embedding plus `added(output of the tap, embedding)`.

    The hooks are of one pass: nothing stays on the modules, so that copies of the network are independent. They act in
    the thread of the pass alone, so that several threads may call one network.

    Args:
        tap: the block whose output is read.
        later: the blocks that are conditioned.
        added: takes the tap's output and a time embedding; it is called once in a pass.
        position, name: where the blocks take the time embedding, by position and as a keyword.
    """
    seen: dict[str, Any] = {}
    owner = get_ident()

    def keep(_: nn.Module, inputs: Any, output: Any) -> None:
        if get_ident() == owner:
            seen["output"] = output

    # without kwargs where another thread has just removed the hook
    def shift(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if get_ident() != owner or kwargs is None:
            return None
        embedding = kwargs[name] if name in kwargs else args[position]
        if "added" not in seen:
            seen["added"] = added(seen.pop("output"), embedding)
        moved = embedding + seen["added"].to(embedding.dtype)
        if name in kwargs:
            return args, {**kwargs, name: moved}
        return (*args[:position], moved, *args[position + 1 :]), kwargs

    with ExitStack() as stack:
        stack.callback(tap.register_forward_hook(keep).remove)
        for block in later:
            stack.callback(block.register_forward_pre_hook(shift, with_kwargs=True).remove)
        yield
