"""An evaluation of a text-to-3D model as one HTML page, with its pictures in it. It needs no network.

Every name is escaped. A content security policy forbids the page to load anything, and allows its own script alone, by
its hash. The same record gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from diffdistill.evaluation.page.document import document
from diffdistill.evaluation.page.report import Numbered
from diffdistill.text3d.evaluation.columns import COLUMNS, Column, columns_of, number, of_truth
from diffdistill.text3d.evaluation.splits import IN_WORDS
from diffdistill.text3d.evaluation.summary import worst_first

CARDS = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(264px, 1fr)); gap: 1.6rem 1.2rem; }
.card { margin: 0; } .card h3 { margin: 0 0 .3rem; font-size: .95rem; }
.card img { display: block; width: 100%; max-width: 320px; height: auto; image-rendering: pixelated; background: #fff; }
.card figcaption { margin-top: .3rem; font-size: .8rem; font-variant-numeric: tabular-nums; }
.bad { color: #c33; font-weight: 600; }
td small { display: block; }
.all thead th { white-space: normal; }
"""
_IN_SHORT = ("recall_at_1", "psnr_db", "iou")
_ON_CARDS = ("recall_at_1", "psnr_db", "iou", "janus", "own_kd", "components")
Record = Mapping[str, Any]


def html_page(record: Record, pictures: Mapping[str, str]) -> str:
    """The page.

    Args:
        record: from `record.record_of`, with the model's "name".
        pictures: for each prompt, the address of its picture, from `pictures.beside`.
    """
    captions = Numbered()
    title = f"Text to 3D: {record['name']}"
    sections = [
        ("splits", "Splits", _splits(record, captions)),
        ("things", "Things, the worst first", _things(record, captions)),
        ("pictures", "All prompts, the worst first", _pictures(record, pictures)),
        ("prompts", "Numbers of all prompts", _prompts(record, captions)),
        ("measured", "What was measured", _measured(record)),
    ]
    links = "".join(f'<a href="#{key}">{words}</a>' for key, words, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{words}</h2>{inside}</section>\n' for key, words, inside in sections)
    header = f"""<p class="headline">{_headline(record["splits"])}</p>
<p>{_judge(record)}</p>
<nav>{links}</nav>"""
    return document(title, header, body, "diffdistill text3d eval", style=CARDS)


def _headline(splits: Mapping[str, Record]) -> str:
    every = splits["all"]
    said = []
    for name, row in splits.items():
        if name != "all" or len(splits) > 2:
            numbers = [f"{c.label} <b>{number(c, row)}</b>{c.unit}" for c in _there(_IN_SHORT, row)]
            said.append(f"{IN_WORDS[name].capitalize()}, {row['prompts']} prompts: {', '.join(numbers)}.")
    ranked = next(column for column in COLUMNS if column.key == every["ranked_by"])
    worst = number(ranked, {ranked.key: every["worst_thing_value"]})
    bad = [words for key, words in (("share_empty", "empty"), ("share_diverged", "diverged")) if every[key]]
    said.append(
        f"The worst thing is the {escape(every['worst_thing'])}: {ranked.label} <b>{worst}</b>{ranked.unit}. "
        + (f"Some objects are {' or '.join(bad)}." if bad else "No object is empty or diverged.")
    )
    return "<br>".join(said)


def _there(keys: Sequence[str], row: Record) -> list[Column]:
    return [column for column in COLUMNS if column.key in keys and row.get(column.key) is not None]


def _judge(record: Record) -> str:
    judge, views = record["judge"], record["settings"]["views"]
    return (
        f"R@1 and R-probability are by a classifier of {judge['queries']} prompts that was trained on true renders. On "
        f"the true renders of these prompts its R@1 is {judge['recall_at_1']:.3f} and its R-probability "
        f"{judge['r_probability']:.3f}. Each object is seen from 24 cameras on white, at {views['side']} x "
        f"{views['side']} pixels. A mean can hide a thing that is wrong in every colour: look at the things and the "
        "pictures."
    )


def _splits(record: Record, captions: Numbered) -> str:
    rows = {IN_WORDS[name]: row for name, row in record["splits"].items()}
    columns = columns_of(rows.values())
    ends = {name: (row["worst_thing"], row["worst_prompt"]) for name, row in rows.items()}
    words = "".join(f"<dt>{escape(c.label)}</dt><dd>{escape(c.words)}</dd>" for c in columns)
    text = "Means over the prompts of each split. Small: the same number of the true objects, which is what can be had."
    return (
        f"<figure>{_table(rows, columns, ('worst thing', 'worst prompt'), ends)}{captions.table(text)}</figure>"
        f"<details><summary>What the numbers are</summary><dl>{words}</dl></details>"
    )


def _things(record: Record, captions: Numbered) -> str:
    rows, key = record["things"], record["splits"]["all"]["ranked_by"]
    ends = {name: (row["worst_prompt"],) for name, row in rows.items()}
    text = (
        f"Means over all prompts of each thing, in the order of {'IoU' if key == 'iou' else 'PSNR'}, the worst first. "
        "Click on a column heading to sort."
    )
    return f"<figure>{_table(rows, columns_of(rows.values()), ('worst prompt',), ends)}{captions.table(text)}</figure>"


def _prompts(record: Record, captions: Numbered) -> str:
    rows = {row["prompt"]: row for row in record["rows"]}
    columns = [column for column in columns_of(rows.values()) if column.key != "prompts"]
    ends = {name: (IN_WORDS[row["split"]],) for name, row in rows.items()}
    text = "Click on a column heading to sort."
    return (
        f"<details><summary>{len(rows)} prompts</summary><figure>{_table(rows, columns, ('split',), ends)}"
        f"{captions.table(text)}</figure></details>"
    )


def _pictures(record: Record, pictures: Mapping[str, str]) -> str:
    side = record["settings"]["views"]["side"]
    key = record["splits"]["all"]["ranked_by"]
    cards = "".join(
        f'<figure class="card"><h3>{escape(row["prompt"])}</h3>'
        f'<img src="{pictures[row["prompt"]]}" width="{4 * side}" height="{2 * side}" loading="lazy" '
        f'alt="{escape(row["prompt"])}: four views of the model above the true ones">'
        f"<figcaption>{_card(row)}</figcaption></figure>"
        for row in worst_first(record["rows"], key)
    )
    return (
        "<p>Of each prompt, the model\u2019s object from the front, the right, the back and the left, 20 degrees from "
        "above, and the true object from the same cameras below. None is left out. Empty and diverged objects come "
        f'first, then the order is that of {"IoU" if key == "iou" else "PSNR"}.</p><div class="cards">{cards}</div>'
    )


def _card(row: Record) -> str:
    said = [f"{column.label} {number(column, row)}{column.unit}" for column in _there(_ON_CARDS, row)]
    if row.get("watertight") is False:
        said.append('<span class="bad">not watertight</span>')
    said += [f'<span class="bad">{fault}</span>' for fault in ("empty", "diverged") if row[fault]]
    return f"{IN_WORDS[row['split']]}; {', '.join(said)}"


def _table(rows: Mapping[str, Record], columns: Sequence[Column], ends: Sequence[str],
           texts: Mapping[str, Iterable[str]]) -> str:  # fmt: skip
    """A sortable table: a line for each name, a column for each number, and texts at the end."""
    first = {column.key: "descending" if column.best == "low" else "ascending" for column in columns}  # the worst
    heads = "".join(f'<th scope="col" data-first="{first[c.key]}">{escape(c.label)}</th>' for c in columns)
    heads += "".join(f'<th scope="col">{escape(label)}</th>' for label in ends)
    lines = []
    for name, row in rows.items():
        cells = "".join(_cell(column, row) for column in columns)
        cells += "".join(f'<td data-v="{escape(text)}">{escape(text)}</td>' for text in texts[name])
        lines.append(f'<tr><th scope="row" data-v="{escape(name)}">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="a table that may be wider than the page">'
        f'<table class="sortable all"><thead><tr><th scope="col">name</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(column: Column, row: Record) -> str:
    value, true = row.get(column.key), of_truth(column, row)
    small = f"<small>{true}</small>" if true else ""
    return f'<td data-v="{"" if value is None else float(value)}">{number(column, row)}{small}</td>'


def _measured(record: Record) -> str:
    settings = record["settings"]
    views, how = settings["views"], settings["how"]
    pairs = [
        ("model", f"<code>{settings['model']}</code>, surface of sharpness {settings['sharpness']:g}"),
        ("judge", f"<code>{settings['judge']}</code>"),
        ("views", f"azimuths {_numbers(views['azimuths_deg'])} at elevations {_numbers(views['elevations_deg'])} "
            f"degrees, distance {views['distance']:g}, field of view {views['fov_deg']:g} degrees, on "
            f"{views['background']}, {views['side']} x {views['side']} pixels"),
        ("rendering", f"{how['resolution']} nodes along a side of the baked grid, {how['samples']} samples along a "
            f"ray; volumes and meshes at {how['volume']} nodes along a side"),
        ("render-KD", _protocol(settings["kd"])),
        ("CLIP", _protocol(settings["clip"])),
    ]  # fmt: skip
    rows = "".join(f"<dt>{term}</dt><dd>{words}</dd>" for term, words in pairs)
    more = {key: value for key, value in settings.items() if isinstance(value, str) and key not in ("model", "judge")}
    rows += "".join(f"<dt>{escape(key)}</dt><dd><code>{escape(value)}</code></dd>" for key, value in more.items())
    lists = [("Candidates of retrieval", settings["queries"])]
    lists += [(f"Prompts, {IN_WORDS[name]}", prompts) for name, prompts in settings["splits"].items() if prompts]
    lists += [("Things, and SHA-256 of their true renders", [f"{k} {v}" for k, v in views["sha256"].items()])]
    return f"<dl>{rows}</dl>" + "".join(
        f'<details><summary>{escape(words)} <span class="count">{len(items)}</span></summary>'
        f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul></details>"
        for words, items in lists
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _protocol(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    return escape(", ".join(f"{key} {value}" for key, value in found.items()))
