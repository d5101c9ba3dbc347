"""A comparison as one HTML page: tables, a plot of quality against variety, and images of the same captions."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diffdistill.evaluation.page.document import document
from diffdistill.evaluation.page.plot import Plot, Point, Series, draw

SHEET_STYLE = """
.sheets figure { margin: 0 0 1.5rem; } .sheets img { image-rendering: auto; max-width: 100%; display: block; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
"""


def html_page(record: Mapping[str, Any], sheets: Mapping[str, bytes]) -> str:
    """The page; it loads nothing from elsewhere.

    Args:
        record: as `comparison.compare.Comparison` makes it.
        sheets: for each generator, its images as PNG, a caption a column.
    """
    rows, teacher = record["rows"], record["teacher"]
    title = f"{_named([row['name'] for row in rows[1:]] or [teacher])} against {teacher}"
    header = f"""<p>{_words(record)}</p>
<nav><a href="#summary">Ratios</a><a href="#plot">Quality and variety</a><a href="#images">Images</a>
<a href="#encoders">Each encoder</a><a href="#protocol">What was measured</a></nav>"""
    main = f"""<section id="summary"><h2>Ratios to the teacher</h2>{_summary(record)}</section>
<section id="plot"><h2>Quality and variety</h2>{_plots(record)}</section>
<section id="images"><h2>Images</h2>{_images(record, sheets)}</section>
<section id="encoders"><h2>Each encoder</h2>{_encoders(record)}</section>
<section id="protocol"><h2>What was measured</h2>{_protocol(record)}</section>
"""
    return document(title, header, main, "diffdistill eval compare", style=SHEET_STYLE)


def written(value: Any, digits: int = 2) -> str:
    """A mean and its spread over seeds; a dash for a number that is missing."""
    if value is None or value[0] is None:
        return "–"
    spread = "" if value[1] is None else f" <small>± {value[1]:.{digits}f}</small>"
    return f"{value[0]:.{digits}f}{spread}"


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _words(record: Mapping[str, Any]) -> str:
    seeds = record["seeds"]
    several = f"± is the standard deviation over {len(seeds)} seeds." if len(seeds) > 1 else "There is one seed."
    return (
        f"Each number is a ratio to that of {escape(record['teacher'])}, with the same prompts and noise. KD is the "
        "kernel distance to real images: lower is better, and 1 is as good as the teacher. Variety is the mean "
        "distance between two images of one caption, and effective images is the Vendi score of the images of a "
        "caption beyond the first one, both over the teacher's: 1 is as varied as the teacher, 0 is one image a "
        "caption. Read them beside KD, because noise in the images is variety too. "
        f"{several}"
    )


def _summary(record: Mapping[str, Any]) -> str:
    kinds = [kind for kind in ("tuning", "judging") if record[kind]]
    heads = "".join(f"<th>KD, {kind}</th><th>variety, {kind}</th>" for kind in kinds)
    lines = []
    for row in record["rows"]:
        cells = ""
        for kind in kinds:
            found = row["summary"].get(kind, {})
            cells += f'<td class="n">{written(found.get("kd"))}</td><td class="n">{written(found.get("variety"))}</td>'
        both = row["summary"].get("all", {})
        seconds = row["seconds_per_image"]
        lines.append(
            f"<tr><th>{escape(row['name'])}</th>{cells}"
            f'<td class="n">{written(both.get("worst_kd"))}</td><td class="n">{written(both.get("worst_variety"))}</td>'
            f'<td class="n">{written(both.get("vendi"))}</td><td class="n">{escape(str(row["nfe"] or "–"))}</td>'
            f'<td class="n">{"–" if seconds is None else f"{seconds:.3f}"}</td></tr>'
        )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th></th>{heads}<th>worst KD</th><th>worst variety</th>'
        "<th>effective images</th><th>passes</th><th>s/image</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        '<p class="soft">A column of tuning or judging is the geometric mean over these encoders. Recipes and '
        "checkpoints may have been chosen by the tuning encoders, and not by the judging ones. Worst is the worst of "
        "all encoders.</p>"
    )


def _plots(record: Mapping[str, Any]) -> str:
    plots = ""
    for kind in ("tuning", "judging"):
        series = []
        for i, row in enumerate(record["rows"]):
            found = row["summary"].get(kind, {})
            kd, variety = found.get("kd"), found.get("variety")
            if not kd or not variety:
                continue
            hint = f"{row['name']}: KD {kd[0]:.3f}, variety {variety[0]:.3f} of the teacher's"
            series.append(Series(row["name"], [Point(variety[0], kd[0], kd[1], variety[1], hint)], i))
        if series:
            plot = Plot(f"KD, {kind} encoders", "variety", series, "over the teacher’s", carry=False, width=460)
            plots += draw(plot)
    return f'<div class="plots">{plots}</div><p class="soft">The teacher is at 1, 1. Better is down and right.</p>'


def _images(record: Mapping[str, Any], sheets: Mapping[str, bytes]) -> str:
    captions = ", ".join(escape(caption) for caption in record["shown"])
    figures = ""
    for row in record["rows"]:
        if row["name"] in sheets:
            data = base64.b64encode(sheets[row["name"]]).decode()
            how = f"{row['steps']} step{'' if row['steps'] == 1 else 's'}, guidance {row['guidance']:g}"
            figures += (
                f"<figure><figcaption><b>{escape(row['name'])}</b> <small>{how}</small></figcaption>"
                f'<img alt="images of {escape(row["name"])}" src="data:image/png;base64,{data}"></figure>'
            )
    return (
        "<p>Each column is one caption, and each row one noise, the same for all generators. The captions: "
        f"{captions}.</p>"
        f'<div class="sheets">{figures}</div>'
    )


def _encoders(record: Mapping[str, Any]) -> str:
    tables = ""
    for name in [*record["tuning"], *record["judging"]]:
        role = "tuning" if name in record["tuning"] else "judging"
        lines = ""
        for row in record["rows"]:
            found = row["encoders"].get(name)
            if found is None:
                continue
            own = found["ratios"]
            cells = "".join(
                f'<td class="n">{written(value, digits)}</td>'
                for value, digits in (
                    (found["kd"], 4), (own["kd"], 2), (found["variety"], 2), (own["variety"], 2), (found["vendi"], 2),
                    (own["vendi"], 2),
                )
            )  # fmt: skip
            lines += f"<tr><th>{escape(row['name'])}</th>{cells}</tr>"
        tables += (
            f"<h3>{escape(name)} <small>{role}</small></h3>"
            '<div class="scroll" tabindex="0"><table><thead><tr><th></th><th>KD</th><th>ratio</th><th>variety</th>'
            "<th>ratio</th><th>Vendi score</th><th>ratio beyond 1</th></tr></thead>"
            f"<tbody>{lines}</tbody></table></div>"
        )
    return tables


def _protocol(record: Mapping[str, Any]) -> str:
    encoders = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(each['extractor']))}, {escape(str(each['resize']))}, weights "
        f"<code>{escape(str(each['weights_sha256'])[:16])}</code></dd>"
        for name, each in record["protocols"].items()
    )
    digests = "".join(
        f"<dt>{escape(row['name'])}</dt><dd>{escape(row['source'])}, <code>{escape(row['digest'])}</code>, "
        f"{row['steps']} steps, guidance {row['guidance']:g}</dd>"
        for row in record["rows"]
    )
    return (
        f"<dl><dt>prompts</dt><dd>{record['images']} a seed, {escape(record['prompts_of'])}</dd>"
        f"<dt>reference</dt><dd>{escape(record['reference'])}</dd>"
        f"<dt>variety</dt><dd>{record['per_caption']} images of each of {record['captions']} captions a seed</dd>"
        f"<dt>seeds</dt><dd>{', '.join(map(str, record['seeds']))}</dd>{encoders}{digests}</dl>"
    )
