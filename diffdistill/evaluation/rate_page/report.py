"""A comparison of codecs as one HTML page, with its crops in files beside it. It needs no network.

Every name is escaped. A content security policy forbids the page to load anything but its own pictures, and allows its
own script alone, by its hash. The same comparison gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diffdistill.evaluation.page.document import document
from diffdistill.evaluation.page.report import Numbered
from diffdistill.evaluation.page.style import SCRIPT
from diffdistill.evaluation.page.words import listed
from diffdistill.evaluation.rate.measures import METRICS, OURS, Metric
from diffdistill.evaluation.rate.summary import Against, against, judge_of, worst_first
from diffdistill.evaluation.rate_page.curves import plots
from diffdistill.evaluation.rate_page.names import bytes_needed, metric_label, name_of
from diffdistill.evaluation.rate_page.photographs import photograph
from diffdistill.evaluation.rate_page.slider import SLIDER_SCRIPT, SLIDER_STYLE
from diffdistill.evaluation.rate_page.tables import bd_table, grid_table, means_table, photograph_table, wins

PICTURES = "'self' file: data:"  # a page that is opened from a disk has no host of its own


def html_page(record: Mapping[str, Any]) -> str:
    """The page.

    Args:
        record: "settings", "rows", "equal_bytes" and "kd", as `Comparison` makes them.
    """
    settings, rows, equal, kd = (record[key] for key in ("settings", "rows", "equal_bytes", "kd"))
    metrics = [METRICS[option] for option in settings["metrics"]]
    rivals = list(settings["rivals"])
    codecs, images = [OURS, *rivals], list(settings["photographs"])
    judge = judge_of(metrics)
    found = {(r, m.option): against(rows, equal, kd, r, m) for r in rivals for m in metrics}
    ordered = worst_first(equal, rivals, judge)
    captions = Numbered()
    title = f"The image codec beside {listed([name_of(rival) for rival in rivals])}"
    photographs = f"{len(images)} photograph{'' if len(images) == 1 else 's'}"
    script = SCRIPT + SLIDER_SCRIPT
    sections = [
        ("equal", "Bytes at equal quality", _bd(found, rivals, metrics, images, captions)),
        ("curves", "Curves", _curves(rows, kd, codecs, metrics, captions)),
        ("photographs", "Photographs at equal bytes", _photographs(ordered, rows, codecs, metrics, judge, settings)),
        ("grid", "Block grid", _grid(equal, codecs, captions)),
        ("numbers", "All means", f"<figure>{means_table(rows, kd, codecs, metrics)}"
            f"{captions.table('Means over photographs at each quality. Click on a column heading to sort.')}</figure>"),
        ("settings", "What was measured", _settings(settings, metrics)),
    ]  # fmt: skip
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{name}</h2>{inside}</section>\n' for key, name, inside in sections)
    header = f"""<p>Every number is of a real file of one of {photographs}: its bytes are counted, and it is decoded
again.</p>
<p class="headline">{wins(found, rivals, judge)}</p>
{_summary(found, rivals, metrics)}
<nav>{links}</nav>"""
    return document(title, header, body, "diffdistill codec eval", style=SLIDER_STYLE, script=script, images=PICTURES)


def _summary(found: Mapping[tuple[str, str], Against], rivals: Sequence[str], metrics: Sequence[Metric]) -> str:
    """What the BD-rates say, a line for each rival; metrics that were trained on come last and say so."""
    ordered = sorted(metrics, key=lambda metric: bool(metric.trained_on))
    lines = []
    for rival in rivals:
        said = [f"{_needed(found[rival, m.option])} by {escape(metric_label(m))}" for m in ordered]
        lines.append(f"<li>Beside <b>{name_of(rival)}</b>, at equal quality: {'; '.join(said)}.</li>")
    trained = [metric.label for metric in metrics if metric.trained_on]
    note = (
        f"<p>The codec is trained on {escape(listed(trained))}, so its numbers by these are flattering. Judge it by "
        "the others, and by the pictures.</p>"
        if trained
        else ""
    )
    return f"<ul>{''.join(lines)}</ul>{note}"


def _needed(one: Against) -> str:
    """A BD-rate in words, and in how many photographs there is one, if not in all."""
    known = sum(value is not None for value in one.each.values())
    some = f" in {known} of {len(one.each)} photographs" if 0 < known < len(one.each) else ""
    return bytes_needed(one.bd_percent) + some


def _bd(found: Mapping[tuple[str, str], Against], rivals: Sequence[str], metrics: Sequence[Metric],
        images: Sequence[str], captions: Numbered) -> str:  # fmt: skip
    text = (
        "BD-rate: how many more bytes this codec needs than the rival for the same quality, as a mean over the range "
        "of quality that both reach. Below 0 %, it needs fewer. Means are over photographs in which that range is a "
        "third of the rival\u2019s or more. The first small line counts photographs with a BD-rate below 0. The second "
        "counts photographs whose file is better than the rival\u2019s of at most as many bytes, at the rate of the "
        "section on photographs. Trained on: this number was a goal of the codec\u2019s training, so it flatters."
    )
    each = (
        "The BD-rate of each photograph. Click on a column heading to sort. A dash: the two share less than a third of "
        "the rival\u2019s range of quality."
    )
    words = "".join(f"<dt>{metric.label}</dt><dd>{metric.words}</dd>" for metric in metrics)
    return (
        f"<figure>{bd_table(found, rivals, metrics)}{captions.table(text)}</figure><dl>{words}</dl>"
        f"<details><summary>Each photograph</summary><figure>{photograph_table(found, rivals, metrics, images)}"
        f"{captions.table(each)}</figure></details>"
    )


def _curves(rows: Sequence[Mapping[str, Any]], kd: Sequence[Mapping[str, Any]], codecs: Sequence[str],
            metrics: Sequence[Metric], captions: Numbered) -> str:  # fmt: skip
    text = (
        "Means over photographs at each quality, against bits a pixel on a logarithmic axis. "
        f"Thick: {name_of(OURS)}. Each photograph has its own curves below. Hover over a point for its numbers."
    )
    return f"<figure>{plots(rows, kd, codecs, metrics)}{captions.figure(text)}</figure>"


def _photographs(ordered: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], codecs: Sequence[str],
                 metrics: Sequence[Metric], judge: Metric, settings: Mapping[str, Any]) -> str:  # fmt: skip
    parts = [photograph(i, row, rows, codecs, metrics) for i, row in enumerate(ordered, 1)]
    return (
        f"<p>This codec\u2019s best file of at most {settings['bpp']:g} bits a pixel, and the best file of each rival "
        "that takes no more bytes than that. Its steps of quality can leave it some bytes short; the tables show it. "
        "A rival that cannot make a file so small is shown by its smallest one, and is not counted above. "
        "Crops are shown at twice their size. Drag the divider, or move it with the arrow keys.</p>"
        f"<p>The worst photograph for this codec comes first: the one with the smallest margin over its best rival, by "
        f"{escape(metric_label(judge))} on the scale on which BD-rates compare it.</p>{''.join(parts)}"
    )


def _grid(equal: Sequence[Mapping[str, Any]], codecs: Sequence[str], captions: Numbered) -> str:
    text = (
        "How much steeper the error is across lines at multiples of 8 or of 16 pixels, whichever is more, than "
        "elsewhere, of the files at equal bytes. It is about 1 where no grid of blocks shows."
    )
    return f"<figure>{grid_table(equal, codecs)}{captions.table(text)}</figure>"


def _settings(settings: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    rivals = "".join(
        f"<dt>{name_of(rival)}</dt><dd><code>{escape(made)}</code></dd>" for rival, made in settings["rivals"].items()
    )
    names = "".join(
        f"<li>{escape(name)} <code>{escape(digest[:16])}</code></li>"
        for name, digest in settings["photographs"].items()
    )
    return (
        f"<dl><dt>model</dt><dd><code>{escape(settings['model'])}</code></dd><dt>qualities</dt>"
        f"<dd>{listed([str(q) for q in settings['qualities']])}</dd><dt>metrics</dt>"
        f"<dd>{escape(listed([metric_label(m) for m in metrics]))}</dd>{rivals}<dt>Pillow</dt>"
        f"<dd>{escape(settings['pillow'])}; plug-in for JPEG XL {escape(settings['pillow_jxl'])}</dd></dl>"
        f"<details><summary>Photographs, and the beginnings of SHA-256 of their pixels</summary><ul>{names}</ul>"
        "</details>"
    )
