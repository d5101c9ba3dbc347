"""What rows of a comparison say: mean curves, bits at equal quality, and which photographs are better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from diffdistill.evaluation.rate.curves import bd_rate, scaled, shared_part
from diffdistill.evaluation.rate.measures import JUDGES, METRICS, OURS, Metric

Rows = Sequence[Mapping[str, Any]]
LEAST_SHARED = 1 / 3  # of a rival's range of quality, below which a BD-rate would be of a sliver


class Against(NamedTuple):
    """This codec beside one rival, by one metric.

    Attributes:
        bd_percent: mean over photographs of the difference in bytes at equal quality, over the range that both reach;
            None where they share too little of it.
        each: of each photograph, or None.
        fewer: in how many photographs this codec needs fewer bytes.
        better: in how many photographs it is better at equal bytes.
        compared: in how many the rival's file is small enough for that.
    """

    bd_percent: float | None
    each: dict[str, float | None]
    fewer: int
    better: int
    compared: int


def curve(rows: Rows, codec: str, image: str | None, key: str) -> tuple[list[float], list[float]]:
    """Rates and values of one codec's rows on one photograph, or on None for rows that have no photograph."""
    own = [r for r in rows if r["codec"] == codec and r.get("image") == image and r.get(key) is not None]
    return [row["bpp"] for row in own], [row[key] for row in own]


def mean_curve(rows: Rows, codec: str, key: str) -> list[tuple[int, float, float]]:
    """Quality, mean rate and mean value over photographs, for each quality at which every photograph has a value."""
    found = []
    own = [row for row in rows if row["codec"] == codec]
    images = {row.get("image") for row in own}
    for quality in sorted({row["quality"] for row in own}):
        at = [row for row in own if row["quality"] == quality and row.get(key) is not None]
        if len(at) == len(images):
            n = len(at)
            found.append((quality, sum(row["bpp"] for row in at) / n, sum(row[key] for row in at) / n))
    return found


def bd_percent(rows: Rows, image: str | None, rival: str, key: str, codec: str = OURS) -> float | None:
    """How many percent more bytes a codec needs than a rival on one photograph, at equal quality.

    It is the mean over the range of quality that both reach; None where that is less than a third of the rival's.
    """
    mine, theirs = curve(rows, codec, image, key), curve(rows, rival, image, key)
    if not mine[0] or not theirs[0] or shared_part(mine[1], theirs[1], key) < LEAST_SHARED:
        return None
    found = 100 * bd_rate(*mine, *theirs, key)
    return None if math.isnan(found) else found


def against(rows: Rows, equal: Rows, kd: Rows, rival: str, metric: Metric) -> Against:
    """This codec beside one rival; see `Against`. The patch distance has one curve and no photographs."""
    if metric.option == "kd":
        return Against(bd_percent(kd, None, rival, "kd"), {}, 0, 0, 0)
    images = list(dict.fromkeys(row["image"] for row in rows))
    each = {image: bd_percent(rows, image, rival, metric.key) for image in images}
    known = [value for value in each.values() if value is not None]
    margins = [m for row in equal if (m := margin(row, rival, metric)) is not None]
    return Against(
        sum(known) / len(known) if known else None,
        each,
        sum(value < 0 for value in known),
        sum(value > 0 for value in margins),
        len(margins),
    )


def margin(row: Mapping[str, Any], rival: str, metric: Metric) -> float | None:
    """How much better this codec's file is than a rival's of at most as many bytes, on the metric's scale.

    None where the rival has no file that small.
    """
    mine, theirs = row["files"][OURS], row["files"][rival]
    if not theirs["fits"] or mine.get(metric.key) is None or theirs.get(metric.key) is None:
        return None
    return scaled(metric.key, mine[metric.key]) - scaled(metric.key, theirs[metric.key])


def judge_of(metrics: Iterable[Metric]) -> Metric:
    """The metric by which photographs are ordered: one that the codec was not trained on, where there is one."""
    options = {metric.option for metric in metrics}
    return METRICS[next(option for option in JUDGES if option in options)]


def worst_first(equal: Rows, rivals: Sequence[str], metric: Metric) -> list[Mapping[str, Any]]:
    """Photographs in the order of the margin over the best rival at equal bytes; those without any margin last."""

    def key(row: Mapping[str, Any]) -> tuple[bool, float, str]:
        margins = [m for rival in rivals if (m := margin(row, rival, metric)) is not None]
        return not margins, min(margins, default=0.0), row["image"]

    return sorted(equal, key=key)
