"""A sweep's numbers as tables: the best row of each generator, and all rows, which the page's script can sort."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from diffdistill.evaluation.page.columns import (
    HELD_OUT,
    Column,
    best_of,
    described,
    digits,
    fewer_seeds,
    real_rows,
    rows_of,
)
from diffdistill.evaluation.page.images import median_distance
from diffdistill.evaluation.page.record import Measured, Row, Sweep

BEST = 5  # metrics in the short table


def best_rows(sweep: Sweep, columns: Sequence[Column], ranked_by: Column | None, caption: str) -> str:
    """The best row of each generator by one column, and the floor; "" where no row has that number."""
    best = [row for g in sweep.generators if (row := best_of(rows_of(sweep, g.name), ranked_by)) is not None]
    if not best:
        return ""
    shown = [column for column in columns if column.better and column.key != "seconds_per_image"][:BEST]
    shown += [column for column in columns if column.key == "seconds_per_image"]
    head = "".join(f"<th>{_head(column)}</th>" for column in shown)
    lines = []
    for row in best:
        cells = "".join(f"<td>{with_small_error(column, row)}</td>" for column in shown)
        how = described(sweep, row)
        lines.append(f"<tr><th>{escape(row.generator)}<small>{how}</small></th>{cells}<td>{_passes(row)}</td></tr>")
    foot = _foot(sweep, shown, "", "<td></td>")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th></th>{head}<th>passes ↓</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody>{foot}</table></div>{caption}"
    )


def medians(sweep: Sweep, ranked_by: Column | None, caption: str) -> str:
    """Median distances to the nearest training image, and their ratios to that of real images."""
    entries: list[tuple[str, str, Measured]] = []
    for generator in sweep.generators:
        rows = [row for row in rows_of(sweep, generator.name) if "nearest_median" in row.mean]
        row = best_of(rows, ranked_by) or next(iter(rows), None)
        if row is not None:
            entries.append((row.generator, described(sweep, row), row))
    floor = median_distance(sweep.floor)[0] if sweep.floor else None
    if sweep.floor and floor is not None:
        entries.append(("real images", HELD_OUT if sweep.prompts_of == "training" else "", sweep.floor))
    lines, decimals = [], digits([value for *_, m in entries if (value := median_distance(m)[0]) is not None])
    for name, how, measured in entries:
        value, error = median_distance(measured)
        if value is None:
            continue
        text = "" if error is None else f' <span class="pm">± {error:.{decimals}f}</span>'
        ratio = f"{value / floor:.2f}" if floor else "–"
        lines.append(
            f"<tr><th>{escape(name)}<small>{how}</small></th><td>{value:.{decimals}f}{text}</td><td>{ratio}</td></tr>"
        )
    return (
        '<div class="scroll" tabindex="0"><table><thead><tr><th></th><th>nearest, median</th><th>over real</th>'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{caption}"
        if lines
        else ""
    )


def all_rows(sweep: Sweep, columns: Sequence[Column], caption: str) -> str:
    """Every row with mean ± error of every metric, the best of a column in bold; cells are sorted by their data-v."""
    best = {column.key: _best_value(sweep, column) for column in columns}
    sets = [*sweep.rows, *(measured for _, measured in real_rows(sweep))]
    seeds = any(fewer_seeds(measured) for measured in sets)  # shown only where rows differ
    fixed = ["generator", "steps", "guidance", "passes", *(["seeds"] if seeds else [])]
    head = "".join(f"<th>{name}</th>" for name in fixed)
    for column in columns:
        first = "descending" if column.better == "higher" else "ascending"
        key = escape(column.key)
        head += f'<th data-key="{key}" data-first="{first}" title="{key}">{_head(column)}</th>'
    lines = []
    for row in [row for generator in sweep.generators for row in rows_of(sweep, generator.name)]:
        cells = f'<th data-v="{escape(row.generator)}">{escape(row.generator)}</th>{_cell(row.steps)}'
        cells += f"{_cell(f'{row.guidance:g}')}{_cell('' if row.nfe is None else row.nfe)}"
        cells += _cell(len(row.seeds)) if seeds else ""
        for column in columns:
            value = row.mean.get(column.key)
            mark = ' class="best"' if value is not None and value == best[column.key] else ""
            data = "" if value is None else repr(value)
            cells += f'<td data-v="{data}"{mark}>{with_small_error(column, row)}</td>'
        lines.append(f"<tr>{cells}</tr>")
    foot = _foot(sweep, columns, "<td></td>" * 3, seeds=seeds)
    return (
        f'<div class="scroll" tabindex="0"><table class="sortable all"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody>{foot}</table></div>{caption}"
    )


def _foot(sweep: Sweep, columns: Sequence[Column], before: str, after: str = "", seeds: bool = False) -> str:
    """Real images below the generators; `seeds` adds a column with their number."""
    lines = []
    for how, measured in real_rows(sweep):
        numbers = "".join(f"<td>{with_small_error(column, measured)}</td>" for column in columns)
        count = f"<td>{len(measured.seeds)}</td>" if seeds else ""
        small = f"<small>{escape(how)}</small>" if how else ""
        lines.append(f"<tr><th>real images{small}</th>{before}{count}{numbers}{after}</tr>")
    return f"<tfoot>{''.join(lines)}</tfoot>" if lines else ""


def generators(sweep: Sweep) -> str:
    """The generators' names, kinds, folders and digests."""
    lines = "".join(
        f"<tr><th>{escape(g.name)}</th><td>{g.kind}</td><td><code>{escape(g.model)}</code></td>"
        f"<td><code>{escape(g.digest)}</code></td></tr>"
        for g in sweep.generators
    )
    head = "<thead><tr><th>generator</th><th>kind</th><th>model</th><th>digest</th></tr></thead>"
    return f'<div class="scroll" tabindex="0"><table class="words">{head}<tbody>{lines}</tbody></table></div>'


def with_small_error(column: Column, measured: Measured) -> str:
    """A cell's number, with its error in grey."""
    mean, _, error = column.with_error(measured).partition(" ± ")
    return f'{mean} <span class="pm">± {error}</span>' if error else mean


def _best_value(sweep: Sweep, column: Column) -> float | None:
    row = best_of(sweep.rows, column) if column.better else None
    return None if row is None else row.mean[column.key]


def _head(column: Column) -> str:
    return f"{escape(column.label)}{f' {column.arrow}' if column.arrow else ''}"


def _cell(value: int | str) -> str:
    return f'<td data-v="{value}">{value if value != "" else "–"}</td>'


def _passes(row: Row) -> str:
    return "–" if row.nfe is None else str(row.nfe)
