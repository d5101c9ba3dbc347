"""The scale of each code value: an index that an integer network reads from the hyper-latent alone.

    z (integers, f64) --1x1--> >> 6, clamp to 8 bits --1x1, shuffle 4--> + 512 >> 10 --> + offset, clamp --> index (f16)

The index names one of 64 Gaussian tables. Encoder and decoder must agree on every index, since one that differs ruins
all that follows. So this network is made of integers: weights of 8 bits, sums that float64 holds, and shifts. Its
result is the same on every device, with every number of threads and in every precision that holds such integers.

Training uses the same integers in the forward pass and the gradients of the values before rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bitstream import HIGHEST_QUALITY
from .layers import clamp_through, straight_through

SCALES = 64
SMALLEST, LARGEST = 0.11, 64.0
LOG_STEP = math.log(LARGEST / SMALLEST) / (SCALES - 1)
Z_MOST = 127  # of the hyper-latent's integers, in absolute value
WEIGHT_UNIT = 64  # a weight of 1.0 as an integer
FIRST_BIAS_UNIT, SECOND_UNIT = 1024, 1024


def scale_of(index: Tensor) -> Tensor:
    """The standard deviation that an index stands for: 0.11 at 0, 64 at 63, geometric between."""
    return SMALLEST * torch.exp(index * LOG_STEP)


class ScaleNetwork(nn.Module):
    """Integers of the hyper-latent to scale indexes.

    Args:
        inputs: channels of the hyper-latent, Z.
        outputs: channels of the code, C.
        levels: levels of quality, L, between which integers are interpolated.
        scales: (C,) root mean squares of the coefficients, for the start.
        gains: (L,) natural logarithms of the gains, for the start.
        width: channels between the two layers, N.
    """

    def __init__(self, inputs: int, outputs: int, levels: int, scales: Tensor, gains: Tensor, width: int = 96) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(width, inputs, 1, 1) * 0.12)
        self.first_bias = nn.Parameter(torch.full((levels, width), 0.5))
        self.second = nn.Parameter(torch.zeros(outputs * 16, width, 1, 1))
        base = (scales / SMALLEST).log() / LOG_STEP
        self.second_bias = nn.Parameter(base.repeat_interleave(16).clone())
        # where a scale is below the smallest, the index starts just below 0, from where it can rise
        self.offset = nn.Parameter((base + (gains / LOG_STEP)[:, None]).clamp_min(-1) - base)

    def integers(self) -> dict[str, Tensor]:
        """The integers of the network, in float64, with straight-through gradients; the format's tables hold these.

        Returns:
            first (N, Z) and second (16 C, N) in [-127, 127], first_bias (L, N), second_bias (16 C), offset (L, C).
        """

        def whole(x: Tensor, unit: float, most: float) -> Tensor:
            scaled = x.double() * unit
            return straight_through(scaled, scaled.detach().round().clamp(-most, most))

        return {
            "first": whole(self.first, WEIGHT_UNIT, 127),
            "first_bias": whole(self.first_bias, FIRST_BIAS_UNIT, 1 << 20),
            "second": whole(self.second, WEIGHT_UNIT, 127),
            "second_bias": whole(self.second_bias, SECOND_UNIT, 1 << 20),
            "offset": whole(self.offset, 1, SCALES),
        }

    def forward(self, z: Tensor, quality: Tensor) -> Tensor:
        """The index of each code value.

        Args:
            z: (B, Z, h, w), integers in [-127, 127] as floating point, with or without a graph.
            quality: (B,) integers in [0, 100].

        Returns:
            (B, C, 4 h, 4 w) float32, integers in [0, 63].
        """
        with torch.autocast(z.device.type, enabled=False):
            return scale_indexes(z.double(), quality, self.integers()).float()


def scale_indexes(z: Tensor, quality: Tensor, integers: dict[str, Tensor]) -> Tensor:
    """`ScaleNetwork` from its integers; all arguments and sums are integers held in float64, so the result is exact."""
    first_bias = integers_between(integers["first_bias"], quality)[:, :, None, None]
    a = F.conv2d(z, integers["first"]) * 16 + first_bias  # in units of 1 / 1024
    a = _shift(a, 6).clamp(0, 255)
    y = F.conv2d(a, integers["second"]) + integers["second_bias"][:, None, None]
    y = F.pixel_shuffle(_shift(y, 10), 4) + integers_between(integers["offset"], quality)[:, :, None, None]
    return clamp_through(y, 0, SCALES - 1)


def _shift(x: Tensor, bits: int) -> Tensor:
    """(x + half) >> bits for integers, with the gradient of a division."""
    scaled = x / 2**bits
    return straight_through(scaled, (scaled.detach() + 0.5).floor())


def integers_between(table: Tensor, quality: Tensor) -> Tensor:
    """Integers between those of a table of levels: (low (span - f) + high f + span / 2) // span.

    Args:
        table: (L, K) integers; (L - 1) divides 100.
        quality: (B,) integers in [0, 100].

    Returns:
        (B, K) integers.

    >>> integers_between(torch.tensor([[0.0], [10.0], [31.0]]), torch.tensor([0, 50, 75, 100])).flatten().tolist()
    [0.0, 10.0, 21.0, 31.0]
    """
    span = HIGHEST_QUALITY // (len(table) - 1)
    low = (quality.long() // span).clamp(0, len(table) - 2)
    f = (quality - low * span)[:, None].to(table.dtype)
    total = table.index_select(0, low) * (span - f) + table.index_select(0, low + 1) * f
    return straight_through(total / span, ((total.detach() + span // 2) / span).floor())
