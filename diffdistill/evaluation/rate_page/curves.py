"""Rate-distortion curves as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffdistill.evaluation.page.plot import Plot, Point, Series, draw
from diffdistill.evaluation.rate.measures import Metric
from diffdistill.evaluation.rate.summary import mean_curve
from diffdistill.evaluation.rate_page.names import name_of, number

TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def curve_plot(rows: Sequence[Mapping[str, Any]], codecs: Sequence[str], metric: Metric) -> str:
    """One metric against bits a pixel on a logarithmic axis, with a line for each codec; "" where there is no value.

    Args:
        rows: of one photograph, or of several, of which means at each quality are drawn.
        codecs: in the order of their colours.
        metric: what is drawn.
    """
    series = []
    for group, codec in enumerate(codecs):
        points = [
            Point(bpp, value, title=f"{name_of(codec)}, quality {quality}: {bpp:.3f} bits a pixel, "
                                    f"{metric.label} {number(metric.key, value)}")
            for quality, bpp, value in mean_curve(rows, codec, metric.key)
        ]  # fmt: skip
        if points:
            points.sort(key=lambda point: point.x)
            series.append(Series(name_of(codec), points, group, strong=group == 0))
    if not series:
        return ""
    xs = [point.x for line in series for point in line.points]
    ticks = [tick for tick in TICKS if min(xs) * 0.95 <= tick <= max(xs) * 1.05]
    better = "higher is better" if metric.higher else "lower is better"
    note = f"{metric.trained_on}; {better}" if metric.trained_on else better
    plot = Plot(metric.label, "bits a pixel", series, note, ticks or None, log2=True, carry=False)
    return draw(plot)


def plots(rows: Sequence[Mapping[str, Any]], kd: Sequence[Mapping[str, Any]], codecs: Sequence[str],
          metrics: Sequence[Metric]) -> str:  # fmt: skip
    """A plot for each metric."""
    drawn = [curve_plot(kd if metric.option == "kd" else rows, codecs, metric) for metric in metrics]
    return f'<div class="plots">{"".join(drawn)}</div>'
