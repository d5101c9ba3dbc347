"""Line plots as SVG text: lines with error bars, a dashed floor, and labels at the ends of the lines.

    ^ y       o------o------o - teacher, guidance 1       a label for each line, moved apart where they would overlap
    |            o------o---- - teacher, guidance 3
    |  <>.................... - student                   dotted: one value carried across, nothing measured along it
    |  - - - - - - - - - - -  - real                      dashed: the floor
    +---1---2---4---8--16---> steps

Colours come from the page: a group's number gives the class g0 .. g5, and its shade, which is ordered as guidance is,
gives the property --mix. The title of a point, shown on hovering, holds its numbers. Lengths are in pixels of the SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from diffdistill.evaluation.page.axes import Axis, axis_over, round_ticks, spread, written

WIDTH, HEIGHT = 360, 284
TOP, BOTTOM, LEFT = 34, 40, 44
LABEL_GAP = 14  # between the baselines of labels
LABEL_CHARACTERS = 17
CHARACTER = 5.9  # mean width of a character at 11 px
GROUPS = 6


@dataclass(frozen=True)
class Point:
    """One point of a line.

    Attributes:
        x, y: its place.
        error, x_error: half the length of the error bars, in units of y and x; None for no bar.
        title: text shown on hovering.
        label: a few characters beside the point.
    """

    x: float
    y: float
    error: float | None = None
    x_error: float | None = None
    title: str = ""
    label: str = ""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: its name, at its end.
        points: at least one.
        group: number of its colour and marker.
        shade: in [0, 1]; 1 is the full colour.
        strong: whether the line is thicker and on top.
    """

    label: str
    points: Sequence[Point]
    group: int = 0
    shade: float = 1.0
    strong: bool = False


@dataclass(frozen=True)
class Plot:
    """What a plot shows.

    Args:
        title, note: text above the plot, in bold and in grey.
        x_label: text below the plot.
        series: the lines; each has at least one point.
        x_ticks: values to mark on the x axis, in rising order; None for round ones.
        log2: whether x is on a log-2 axis.
        floor: a value of y, drawn as a dashed line, and its label.
        carry: whether a line that ends early is continued to the right edge, dotted.
        width, height: in pixels.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    note: str = ""
    x_ticks: Sequence[float] | None = None
    log2: bool = False
    floor: tuple[float, str] | None = None
    carry: bool = True
    width: int = WIDTH
    height: int = HEIGHT


def draw(plot: Plot) -> str:
    """The plot as one <svg> element.

    Raises:
        ValueError: no series, or a series without a point.
    """
    if not plot.series or not all(series.points for series in plot.series):
        raise ValueError("a plot needs a series, and every series a point")
    labels = [cut(series.label) for series in plot.series] + ([cut(plot.floor[1])] if plot.floor else [])
    right = plot.width - 24 - CHARACTER * max(map(len, labels))
    height = max(plot.height, TOP + BOTTOM + LABEL_GAP * len(labels))
    points = [p for series in plot.series for p in series.points]
    ys = [y for p in points for y in (p.y - (p.error or 0), p.y + (p.error or 0))]
    xs = [x for p in points for x in (p.x - (p.x_error or 0), p.x + (p.x_error or 0))]
    x = axis_over(xs, LEFT, right, plot.log2)
    y = axis_over(ys + ([plot.floor[0]] if plot.floor else []), height - BOTTOM, TOP)
    ordered = sorted(plot.series, key=lambda series: series.strong)
    parts = [
        _frame(plot, x, y),
        _floor(plot, x, y),
        *(_series(series, x, y, plot.carry) for series in ordered),
        _point_labels(plot, x, y),
        _end_labels(plot, labels, x, y),
    ]
    names = ", ".join(series.label for series in plot.series)
    return (
        f'<svg class="plot" viewBox="0 0 {plot.width} {_n(height)}" role="img" '
        f'aria-label="{escape(f"{plot.title} against {plot.x_label}: {names}")}">{"".join(parts)}</svg>'
    )


def marker(group: int, x: float, y: float, r: float = 3.6) -> str:
    """The marker of a group: a circle, diamond, square, triangle, inverted triangle or cross.

    So groups differ even without their colours.
    """
    shapes = (
        (),
        ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
        ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        ((0, -1.3), (1.25, 1), (-1.25, 1)),
        ((0, 1.3), (1.25, -1), (-1.25, -1)),
        ((-1.3, -0.4), (-0.4, -0.4), (-0.4, -1.3), (0.4, -1.3), (0.4, -0.4), (1.3, -0.4))
        + ((1.3, 0.4), (0.4, 0.4), (0.4, 1.3), (-0.4, 1.3), (-0.4, 0.4), (-1.3, 0.4)),
    )
    corners = shapes[group % GROUPS]
    if not corners:
        return f'<circle class="mark" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"/>'
    return f'<path class="mark" d="M{"L".join(f"{_n(x + r * a)} {_n(y + r * b)}" for a, b in corners)}Z"/>'


def cut(text: str, most: int = LABEL_CHARACTERS) -> str:
    """A label that fits the margin: a long text loses its middle."""
    return text if len(text) <= most else f"{text[: most - 8]}…{text[-7:]}"


def _frame(plot: Plot, x: Axis, y: Axis) -> str:
    head = (
        f'<text class="title" x="0" y="13">{escape(plot.title)}<tspan class="note" dx="6">{escape(plot.note)}</tspan>'
    )
    parts = [head + "</text>"]
    for value, number in written(round_ticks(y.low, y.high)):
        at = _n(y(value))
        parts.append(f'<path class="grid" d="M{_n(x.start)} {at}H{_n(x.end)}"/>')
        parts.append(f'<text class="tick y" x="{_n(x.start - 6)}" y="{at}" dy=".35em">{number}</text>')
    parts.append(f'<path class="axis" d="M{_n(x.start)} {_n(y.start)}H{_n(x.end)}"/>')
    free = -math.inf
    ticks = written(round_ticks(x.low, x.high)) if plot.x_ticks is None else [(v, f"{v:g}") for v in plot.x_ticks]
    for tick, text in ticks:
        place = x(tick)
        parts.append(f'<path class="axis" d="M{_n(place)} {_n(y.start)}v4"/>')
        half = CHARACTER * len(text) / 2
        if place - half > free:  # a tick has no number where it would touch the number before it
            parts.append(f'<text class="tick x" x="{_n(place)}" y="{_n(y.start + 17)}">{text}</text>')
            free = place + half + 4
    middle = (x.start + x.end) / 2
    parts.append(f'<text class="tick x" x="{_n(middle)}" y="{_n(y.start + 34)}">{escape(plot.x_label)}</text>')
    return "".join(parts)


def _floor(plot: Plot, x: Axis, y: Axis) -> str:
    if plot.floor is None:
        return ""
    value, label = plot.floor
    return (
        f'<path class="floor" d="M{_n(x.start)} {_n(y(value))}H{_n(x.end)}"><title>{escape(label)}: {value:.4g}'
        "</title></path>"
    )


def _series(series: Series, x: Axis, y: Axis, carry: bool) -> str:
    at = [(x(p.x), y(p.y)) for p in series.points]
    parts = []
    if carry and at[-1][0] <= _early(x):
        parts.append(f'<path class="carry" d="M{_n(at[-1][0])} {_n(at[-1][1])}H{_n(x.end)}"/>')
    bars = "".join(_bars(p, x, y) for p in series.points)
    parts.append(f'<path class="err" d="{bars}"/>' if bars else "")
    if len(at) > 1:
        parts.append(f'<path class="line" d="M{"L".join(f"{_n(a)} {_n(b)}" for a, b in at)}"/>')
    for p, (a, b) in zip(series.points, at, strict=True):
        hit = f'<circle class="hit" cx="{_n(a)}" cy="{_n(b)}" r="9"/>'
        parts.append(f'<g class="pt"><title>{escape(p.title)}</title>{hit}{marker(series.group, a, b)}</g>')
    return _coloured(series, "".join(parts))


def _early(x: Axis) -> float:
    """The pixel that a line has to reach in order to count as ending at the right edge."""
    return x.end - 0.06 * (x.end - x.start)


def _bars(p: Point, x: Axis, y: Axis) -> str:
    """The path of a point's error bars, with caps of 3 pixels."""
    path = ""
    if p.error:
        top, bottom = y(p.y + p.error), y(p.y - p.error)
        path += f"M{_n(x(p.x))} {_n(top)}V{_n(bottom)}" + "".join(f"M{_n(x(p.x) - 3)} {_n(e)}h6" for e in (top, bottom))
    if p.x_error:
        left, right = x(p.x - p.x_error), x(p.x + p.x_error)
        path += f"M{_n(left)} {_n(y(p.y))}H{_n(right)}" + "".join(f"M{_n(e)} {_n(y(p.y) - 3)}v6" for e in (left, right))
    return path


def _point_labels(plot: Plot, x: Axis, y: Axis) -> str:
    """Labels beside their points, on the first of four sides that is free, otherwise above."""
    points = [p for series in plot.series for p in series.points]
    around = [_around(p, x, y) for p in points]
    taken, parts = [*around], []
    for p, (left, top, right, bottom) in zip(points, around, strict=True):
        if not p.label:
            continue
        w = CHARACTER * len(p.label)
        a, b = x(p.x), y(p.y)
        sides = ((a - w / 2, top - 13), (a - w / 2, bottom + 2), (right + 3, b - 5.5), (left - 3 - w, b - 5.5))
        boxes = [(c, d, c + w, d + 11) for c, d in sides]
        box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(box)
        parts.append(f'<text class="tick at" x="{_n(box[0])}" y="{_n(box[1] + 9.5)}">{escape(p.label)}</text>')
    return "".join(parts)


def _around(p: Point, x: Axis, y: Axis) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a point's marker and bars."""
    wide, high = p.x_error or 0.0, p.error or 0.0
    left, right, top, bottom = x(p.x - wide), x(p.x + wide), y(p.y + high), y(p.y - high)
    return min(left, x(p.x) - 4), min(top, y(p.y) - 4), max(right, x(p.x) + 4), max(bottom, y(p.y) + 4)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _end_labels(plot: Plot, labels: Sequence[str], x: Axis, y: Axis) -> str:
    """The legend: a label at the end of each line, with a thin line to it where it had to move."""
    ends: list[tuple[float, str, Series | None]] = [
        (y(series.points[-1].y), label, series) for series, label in zip(plot.series, labels, strict=False)
    ]
    if plot.floor is not None:
        ends.append((y(plot.floor[0]), labels[-1], None))
    ends.sort(key=lambda end: end[0])
    parts, edge = [], x.end
    for at, (wanted, label, series) in zip(spread([e[0] for e in ends], LABEL_GAP, TOP, y.start), ends, strict=True):
        text = f'<text class="end" x="{_n(edge + 20)}" y="{_n(at)}" dy=".35em">{escape(label)}</text>'
        if series is None:
            parts.append(f'<path class="floor" d="M{_n(edge)} {_n(wanted)}L{_n(edge + 7)} {_n(at)}h8"/>{text}')
            continue
        last = x(series.points[-1].x)
        begin = f"M{_n(last)} {_n(wanted)}H{_n(edge)}" if last > _early(x) else f"M{_n(edge)} {_n(wanted)}"
        leader = f'<path class="leader" d="{begin}L{_n(edge + 9)} {_n(at)}"/>' if plot.carry else ""
        title = f"<title>{escape(series.label)}</title>" if label != series.label else ""
        swatch = marker(series.group, edge + 12, at, 3.2)
        parts.append(_coloured(series, f"{title}{leader}{swatch}{text}"))
    return "".join(parts)


def _coloured(series: Series, inside: str) -> str:
    strong = " strong" if series.strong else ""
    mix = round(100 * (0.5 + 0.5 * series.shade))
    return f'<g class="series g{series.group % GROUPS}{strong}" style="--mix:{mix}%">{inside}</g>'


def _n(value: float) -> str:
    """A coordinate to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
