"""Rate-distortion curves: what a codec reaches at a rate, and the bits that it needs beside another (BD-rate)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# how a metric is put on a scale on which a curve is nearly straight; larger is better
SCALES = {
    "psnr_db": lambda value: value,
    "ms_ssim": lambda value: -math.log(max(1e-9, 1 - value)),
    "lower": lambda value: -math.log(max(1e-9, value)),
}


def scaled(metric: str, value: float) -> float:
    """A metric's value on the scale on which curves are interpolated; larger is better.

    PSNR stays as it is, MS-SSIM becomes -ln(1 - m), and a distance becomes -ln(d).
    """
    return float(SCALES.get(metric, SCALES["lower"])(value))


def value_at(rates: Sequence[float], values: Sequence[float], rate: float, metric: str) -> float:
    """The metric at a rate, between the points of a curve; nan outside the curve.

    Interpolation is linear in the logarithm of the rate and on the metric's scale (`scaled`).

    >>> round(value_at([0.1, 0.4], [20.0, 30.0], 0.2, "psnr_db"), 6)
    25.0
    """
    if not min(rates) <= rate <= max(rates):
        return math.nan
    order = np.argsort(rates)
    on_scale = [scaled(metric, values[i]) for i in order]
    found = float(np.interp(math.log(rate), [math.log(rates[i]) for i in order], on_scale))
    if metric == "psnr_db":
        return found
    return 1 - math.exp(-found) if metric == "ms_ssim" else math.exp(-found)


def bd_rate(
    rates: Sequence[float],
    values: Sequence[float],
    anchor_rates: Sequence[float],
    anchor_values: Sequence[float],
    metric: str,
    between: tuple[float, float] | None = None,
) -> float:
    """The mean difference in rate at equal quality, as a share: -0.2 is a fifth fewer bits than the anchor needs.

    The logarithms of both rates are interpolated linearly over the range of quality that both curves cover. (The usual
    cubic fit over four points invents values between far points.)

    Args:
        rates: of the codec's points.
        values: of the metric there.
        anchor_rates: of the anchor's points.
        anchor_values: of the metric there.
        metric: "psnr_db", "ms_ssim", or the name of a distance.
        between: bits a pixel; the part of the anchor's curve that counts. None for all of it.

    Returns:
        nan where the curves share no quality.

    >>> round(bd_rate([0.1, 0.2], [20.0, 30.0], [0.2, 0.4], [20.0, 30.0], "psnr_db"), 6)
    -0.5
    """
    a, b = (_by_quality(r, v, metric) for r, v in ((rates, values), (anchor_rates, anchor_values)))
    low, high = max(a[0][0], b[0][0]), min(a[0][-1], b[0][-1])
    if between is not None:
        ends = [float(np.interp(math.log(rate), b[1], b[0])) for rate in between]
        low, high = max(low, ends[0]), min(high, ends[1])
    if not high > low:
        return math.nan
    places = np.linspace(low, high, 200)
    return float(np.exp(np.mean(np.interp(places, *a) - np.interp(places, *b))) - 1)


def shared_part(values: Sequence[float], anchor_values: Sequence[float], metric: str) -> float:
    """The share of an anchor's range of quality, on the metric's scale, that a codec reaches too: 0 to 1.

    >>> shared_part([20.0, 30.0], [25.0, 45.0], "psnr_db")
    0.25
    """
    a, b = ([scaled(metric, v) for v in own] for own in (values, anchor_values))
    span = max(b) - min(b)
    return max(0.0, min(max(a), max(b)) - max(min(a), min(b))) / span if span > 0 else 0.0


def _by_quality(rates: Sequence[float], values: Sequence[float], metric: str) -> tuple[list[float], list[float]]:
    """Qualities, rising, and the logarithms of the rates; a point that costs more than a better one is left out."""
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted((math.log(r), scaled(metric, v)) for r, v in zip(rates, values, strict=True)):
        if not kept or quality > kept[-1][0]:
            kept.append((quality, rate))
    return [quality for quality, _ in kept], [rate for _, rate in kept]
