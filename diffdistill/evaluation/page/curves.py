"""A sweep's numbers as plots: each metric against steps, and distance against agreement as guidance grows."""

from __future__ import annotations

from collections.abc import Sequence

from diffdistill.evaluation.page.columns import Column, best_of, described, error_of, guided, level_of, rows_of
from diffdistill.evaluation.page.plot import LABEL_CHARACTERS, Plot, Point, Series, cut, draw
from diffdistill.evaluation.page.record import Row, Sweep


def curves(sweep: Sweep, columns: Sequence[Column], ranked_by: Column | None) -> list[str]:
    """An SVG for each column: one line for each generator and guidance scale, against steps on a log-2 axis."""
    drawn = []
    for column in columns:
        series = []
        for group, generator in enumerate(sweep.generators):
            rows = [row for row in rows_of(sweep, generator.name) if row.mean.get(column.key) is not None]
            best = best_of(rows_of(sweep, generator.name), ranked_by)
            guidances = sorted({row.guidance for row in rows})
            for rank, guidance in enumerate(guidances):
                points = [_point(sweep, row, column) for row in rows if row.guidance == guidance]
                several = len(guidances) > 1
                series.append(
                    Series(
                        label=_label(generator.name, f", g {guidance:g}" if several else ""),
                        points=points,
                        group=group,
                        shade=rank / (len(guidances) - 1) if several else 1.0,
                        strong=several and best is not None and best.guidance == guidance,
                    )
                )
        if series:
            plot = Plot(
                title=column.label,
                note=f"{column.better} is better" if column.better else "",
                x_label="steps",
                series=series,
                x_ticks=sorted({row.steps for row in sweep.rows}),
                log2=True,
                floor=level_of(sweep, column),
            )
            drawn.append(draw(plot))
    return drawn


def trade_off(sweep: Sweep, distance: Column | None, agreement: Column | None) -> str:
    """Distance against agreement along guidance, at each generator's largest number of steps; "" without either."""
    if distance is None or agreement is None or distance == agreement:
        return ""
    series = []
    for group, generator in enumerate(sweep.generators):
        rows = rows_of(sweep, generator.name)
        most = max((row.steps for row in rows), default=0)
        points = [
            _against(sweep, row, distance, agreement, x, y)
            for row in rows
            if row.steps == most
            and (x := row.mean.get(agreement.key)) is not None
            and (y := row.mean.get(distance.key)) is not None
        ]
        if points:
            label = _label(generator.name, f", {most} step{'' if most == 1 else 's'}")
            series.append(Series(label, points, group, 1.0))
    if not series:
        return ""
    plot = Plot(
        title=f"{distance.label} against {agreement.label}",
        note="better: down and to the right",
        x_label=agreement.label,
        series=series,
        carry=False,
        width=420,
        height=320,
    )
    return draw(plot)


def _point(sweep: Sweep, row: Row, column: Column) -> Point:
    title = f"{_named(sweep, row)}: {column.label} {column.with_error(row)}"
    return Point(row.steps, row.mean[column.key] or 0.0, error_of(row, column.key), title=title)


def _against(sweep: Sweep, row: Row, distance: Column, agreement: Column, x: float, y: float) -> Point:
    numbers = f"{distance.label} {distance.with_error(row)}, {agreement.label} {agreement.with_error(row)}"
    return Point(
        x,
        y,
        error_of(row, distance.key),
        error_of(row, agreement.key),
        title=f"{_named(sweep, row)}: {numbers}",
        label=f"{row.guidance:g}" if guided(sweep, row.generator) else "",
    )


def _named(sweep: Sweep, row: Row) -> str:
    return f"{row.generator}, {described(sweep, row)}"


def _label(name: str, more: str) -> str:
    return f"{cut(name, max(9, LABEL_CHARACTERS - len(more)))}{more}"
