"""Inner features of a backbone, read in a full pass or in one that ends at the features.

A tap is a module of the network with a name (`Backbone.taps`). The critic of an adversarial term reads a tap;
self-conditioning and linear probes can. Features have a graph if the pass has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn

from diffdistill.diffusion.condition import Condition

from .backbone import Backbone


def read(
    backbone: Backbone, names: Sequence[str], x_t: Tensor, time: Tensor, cond: Condition
) -> tuple[Tensor, dict[str, Tensor]]:
    """One pass: the prediction, of x_t's shape, and the features (B, C, h, w) of the named taps.

    Raises:
        ValueError: the network has no tap of a name.
    """
    features: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(output: Any, name: str = name) -> None:
                features[name] = backbone.feature_map(output, x_t)

            stack.enter_context(hooked(tap(backbone, name), keep))
        value = backbone(x_t, time, cond)
    return value, features


def stop_at(backbone: Backbone, name: str, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
    """The features (B, C, h, w) of a tap. The pass ends there, so the modules after it cost nothing.

    Raises:
        ValueError: the network has no tap of this name.
        RuntimeError: the network did not run the module of the tap.
    """
    try:
        with hooked(tap(backbone, name), _stop):
            backbone(x_t, time, cond)
    except _ReachedError as reached:
        return backbone.feature_map(reached.output, x_t)
    raise RuntimeError(f"the network did not run its tap {name}")


def tap(backbone: Backbone, name: str) -> nn.Module:
    """The module of a tap.

    Raises:
        ValueError: the network has no tap of this name.
    """
    found = backbone.taps()
    if name not in found:
        raise ValueError(f"the network has no tap {name!r}; its taps are {', '.join(found)}")
    return found[name]


class _ReachedError(Exception):
    """Ends a pass at a tap and carries the output of the module; it is no failure."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _stop(output: Any) -> NoReturn:
    raise _ReachedError(output)


@contextmanager
def hooked(module: nn.Module, see: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, `see` is called with every output of the module; what it returns, unless None, replaces it."""
    handle = module.register_forward_hook(lambda module, inputs, output: see(output))
    try:
        yield
    finally:
        handle.remove()
