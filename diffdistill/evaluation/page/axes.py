"""Axes of a plot: the map from values to pixels, round ticks, and labels moved apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """The affine map from values low .. high (from their log2 where `log2`) to pixels start .. end."""

    low: float
    high: float
    start: float
    end: float
    log2: bool = False

    def __call__(self, value: float) -> float:
        low, high, v = (math.log2(x) if self.log2 else x for x in (self.low, self.high, value))
        return self.start + (v - low) / (high - low) * (self.end - self.start)


def axis_over(values: Sequence[float], start: float, end: float, log2: bool = False) -> Axis:
    """An axis over values with 5% of space at both ends, also where all values are equal.

    >>> axis_over([0.0, 10.0], 0, 110)
    Axis(low=-0.5, high=10.5, start=0, end=110, log2=False)
    """
    low, high = (math.log2(f(values)) if log2 else f(values) for f in (min, max))
    air = 0.05 * (high - low)
    if air <= 1e-9 * max(abs(low), abs(high)):
        air = 0.5 if log2 else 0.1 * abs(low) or 1.0
    low, high = low - air, high + air
    return Axis(2**low, 2**high, start, end, True) if log2 else Axis(low, high, start, end)


def round_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], about `about` of them.

    >>> round_ticks(0.03, 0.58)
    [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{k * step:.10g}") for k in ticks]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, nearest to the wanted ones (least squares), and in [low, high] if they fit.

    With z[i] = y[i] - i gap, the y are `gap` apart where the z do not fall, so adjacent z that fall are averaged.

    Args:
        wanted: n positions, in rising order.

    >>> spread([10.0, 11.0, 40.0], 4, 0, 100)
    [8.5, 12.5, 40.0]
    """
    pools: list[tuple[float, int]] = []  # mean and size
    for i, y in enumerate(wanted):
        mean, size = y - i * gap, 1
        while pools and pools[-1][0] > mean:
            before, n = pools.pop()
            mean, size = (before * n + mean * size) / (n + size), n + size
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    last = high - gap * (len(flat) - 1)
    return [max(low, min(z, last)) + i * gap for i, z in enumerate(flat)]


def written(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks and their texts, with as many decimals as the longest one needs, and a real minus sign.

    >>> written([-0.5, 0.0, 0.25])
    [(-0.5, '−0.50'), (0.0, '0.00'), (0.25, '0.25')]
    """
    texts = [f"{tick:g}" for tick in ticks]
    if any("e" in text for text in texts):
        return [(tick, text.replace("-", "−")) for tick, text in zip(ticks, texts, strict=True)]
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [(tick, f"{tick:.{decimals}f}".replace("-", "−")) for tick in ticks]
