"""Tables of a comparison: bytes at equal quality, numbers at equal bytes, and block grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diffdistill.evaluation.rate.measures import OURS, Metric
from diffdistill.evaluation.rate.summary import Against
from diffdistill.evaluation.rate_page.names import metric_label, name_of, number, percent


def bd_table(found: Mapping[tuple[str, str], Against], rivals: Sequence[str], metrics: Sequence[Metric]) -> str:
    """A row for each metric and a column for each rival: BD-rate, and in how many photographs this codec wins."""
    head = "".join(f'<th scope="col">{name_of(rival)}</th>' for rival in rivals)
    lines = []
    for metric in metrics:
        cells = "".join(f"<td>{_against(found[rival, metric.option])}</td>" for rival in rivals)
        small = f"<small>{escape(metric.trained_on)}</small>" if metric.trained_on else ""
        lines.append(f'<tr><th scope="row">{metric.label}{small}</th>{cells}</tr>')
    return _table(f'<th scope="col">metric</th>{head}', lines)


def _against(one: Against) -> str:
    parts = [f"<b>{percent(one.bd_percent)}</b>"]
    if one.each:
        parts.append(f"<small>fewer bytes in {one.fewer} of {sum(v is not None for v in one.each.values())}</small>")
        better = f"better at equal bytes in {one.better} of {one.compared}" if one.compared else "no file that small"
        parts.append(f"<small>{better}</small>")
    return "".join(parts)


def photograph_table(found: Mapping[tuple[str, str], Against], rivals: Sequence[str], metrics: Sequence[Metric],
                     images: Sequence[str]) -> str:  # fmt: skip
    """BD-rates of each photograph."""
    own = [metric for metric in metrics if metric.option != "kd"]
    head = '<th scope="col">photograph</th>' + "".join(
        f'<th scope="col" data-first="ascending">{name_of(rival)}<small>{escape(metric.label)}</small></th>'
        for metric in own
        for rival in rivals
    )
    lines = []
    for image in images:
        cells = ""
        for metric in own:
            for rival in rivals:
                value = found[rival, metric.option].each.get(image)
                cells += f'<td data-v="{"" if value is None else f"{value:.3f}"}">{percent(value)}</td>'
        lines.append(f'<tr><th scope="row" data-v="{escape(image)}">{escape(image)}</th>{cells}</tr>')
    return _table(head, lines, "sortable all")


def equal_table(files: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric]) -> str:
    """The files of one photograph at equal bytes."""
    own = [metric for metric in metrics if metric.option != "kd"]
    head = "".join(f'<th scope="col">{text}</th>' for text in ("codec", "bytes", "bits a pixel", "quality"))
    head += "".join(f'<th scope="col">{escape(metric_label(metric))}</th>' for metric in own)
    head += '<th scope="col">block grid</th>'
    lines = []
    for codec, file in files.items():
        small = "" if file["fits"] else "<small>its smallest file, which is larger</small>"
        cells = f"<td>{file['bytes']:,}</td><td>{file['bpp']:.3f}</td><td>{file['quality']}</td>"
        cells += "".join(f"<td>{number(metric.key, file.get(metric.key))}</td>" for metric in own)
        cells += f"<td>{number('block_grid', file.get('block_grid'))}</td>"
        lines.append(f'<tr><th scope="row">{name_of(codec)}{small}</th>{cells}</tr>')
    return _table(head, lines)


def grid_table(equal: Sequence[Mapping[str, Any]], codecs: Sequence[str]) -> str:
    """The mean and the largest block grid of each codec's files at equal bytes."""
    lines = []
    for codec in codecs:
        values = [v for row in equal if (v := row["files"][codec].get("block_grid")) is not None]
        mean = sum(values) / len(values) if values else None
        lines.append(
            f'<tr><th scope="row">{name_of(codec)}</th><td>{number("block_grid", mean)}</td>'
            f"<td>{number('block_grid', max(values, default=None))}</td></tr>"
        )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("codec", "mean", "largest"))
    return _table(head, lines)


def means_table(rows: Sequence[Mapping[str, Any]], kd: Sequence[Mapping[str, Any]], codecs: Sequence[str],
                metrics: Sequence[Metric]) -> str:  # fmt: skip
    """Means over photographs at each quality of each codec."""
    of_kd = {(row["codec"], row["quality"]): row["kd"] for row in kd}
    keys = [metric.key for metric in metrics if metric.option != "kd"] + ["block_grid"]
    labels = ["codec", "quality", "bits a pixel"]
    labels += [metric.label for metric in metrics if metric.option != "kd"] + ["block grid"]
    labels += ["patch-KD"] if kd else []
    lines = []
    for codec in codecs:
        own = [row for row in rows if row["codec"] == codec]
        for quality in sorted({row["quality"] for row in own}):
            at = [row for row in own if row["quality"] == quality]
            means = [("bpp", _mean(at, "bpp")), *((key, _mean(at, key)) for key in keys)]
            means += [("kd", of_kd.get((codec, quality)))] if kd else []
            cells = "".join(f'<td data-v="{"" if v is None else f"{v:.6f}"}">{number(key, v)}</td>' for key, v in means)
            name = name_of(codec)
            lines.append(f'<tr><th scope="row" data-v="{name}">{name}</th><td data-v="{quality}">{quality}</td>'
                         f"{cells}</tr>")  # fmt: skip
    return _table("".join(f'<th scope="col">{escape(label)}</th>' for label in labels), lines, "sortable all")


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row.get(key) for row in rows]
    return None if not values or None in values else sum(values) / len(values)  # type: ignore[arg-type]


def _table(head: str, lines: Sequence[str], kind: str = "") -> str:
    what = f' class="{kind}"' if kind else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="a table that may be wider than the page">'
        f"<table{what}><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def wins(found: Mapping[tuple[str, str], Against], rivals: Sequence[str], metric: Metric) -> str:
    """In how many photographs this codec is better at equal bytes, by one metric, in one sentence."""
    said = [
        f"{one.better} of {one.compared} photographs against {name_of(rival)}"
        for rival in rivals
        if (one := found[rival, metric.option]).compared
    ]
    if not said:
        return f"No rival has files as small as those of {name_of(OURS)} at this rate."
    return (
        f"Beside files of at most as many bytes, {name_of(OURS)} is better by {escape(metric_label(metric))} in "
        f"{', '.join(said)}."
    )
