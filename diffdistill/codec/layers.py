"""Small building blocks of the codec's networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bitstream import HIGHEST_QUALITY

SLOPE = 0.1  # of the leaky ReLU


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, SLOPE)


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride; orthogonal at the start, which keeps the rms, or zero."""
    made = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    if zero:
        nn.init.zeros_(made.weight)
    else:
        nn.init.orthogonal_(made.weight, max(1.0, (outputs / (inputs * kernel**2)) ** 0.5))
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


class Residual(nn.Module):
    """x + conv(act(conv(act(x)))), which is x at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width, zero=True)
        nn.init.kaiming_normal_(self.first.weight, a=SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        inner: Tensor = self.second(activate(self.first(activate(x))))
        return x + inner


def residuals(width: int, count: int) -> nn.Sequential:
    """Several residual blocks, one after another."""
    return nn.Sequential(*(Residual(width) for _ in range(count)))


class Enlarge(nn.Module):
    """A 1x1 convolution and a pixel shuffle: (B, inputs, h, w) to (B, outputs, 2 h, 2 w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = convolution(inputs, 4 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge by a factor of 2."""
        return F.pixel_shuffle(self.convolution(x), 2)


def between_levels(table: Tensor, quality: Tensor) -> Tensor:
    """Rows between those of a table, by linear interpolation.

    Args:
        table: (L, ...), of L levels; the first is for quality 0 and the last for quality 100.
        quality: (B,) in [0, 100].

    Returns:
        (B, ...).

    >>> between_levels(torch.tensor([[0.0], [10.0], [30.0]]), torch.tensor([50, 75])).flatten().tolist()
    [10.0, 20.0]
    """
    place = quality.to(table.dtype) * ((len(table) - 1) / HIGHEST_QUALITY)
    low = place.floor().clamp(0, len(table) - 2)
    share = (place - low).view(-1, *[1] * (table.dim() - 1))
    low = low.long()
    return table.index_select(0, low) * (1 - share) + table.index_select(0, low + 1) * share


def modulated(x: Tensor, table: Tensor, quality: Tensor) -> Tensor:
    """x + x a + b, with a and b (B, K) of the quality; x is (B, K, h, w), and the table (L, 2 K)."""
    a, b = between_levels(table, quality)[:, :, None, None].to(x.dtype).chunk(2, 1)
    return x + x * a + b


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outward = (x < low) & (gradient > 0) | (x > high) & (gradient < 0)  # descent would move x further out
        return gradient.masked_fill(outward, 0), None, None


def clamp_through(x: Tensor, low: float, high: float) -> Tensor:
    """x clamped; beyond a bound, only gradients that lead back are passed."""
    result: Tensor = _Clamp.apply(x, low, high)
    return result


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` in the forward pass, with the gradient of x."""
    result: Tensor = _Straight.apply(x, value)
    return result


def round_through(x: Tensor) -> Tensor:
    """x rounded, with the gradient of x."""
    return straight_through(x, x.detach().round())
