"""The photographs of a comparison: crops at equal bytes, and each one's own curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diffdistill.evaluation.rate.crops import ORIGINAL
from diffdistill.evaluation.rate.measures import OURS, Metric
from diffdistill.evaluation.rate.summary import judge_of, margin
from diffdistill.evaluation.rate_page.curves import plots
from diffdistill.evaluation.rate_page.names import name_of, rates
from diffdistill.evaluation.rate_page.slider import Choice, slider
from diffdistill.evaluation.rate_page.tables import equal_table


def photograph(number: int, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], codecs: Sequence[str],
               metrics: Sequence[Metric]) -> str:  # fmt: skip
    """One photograph's part of the page.

    Args:
        number: which one it is, from 1.
        row: its files at equal bytes, see `Comparison.equal_bytes`.
        rows: those of all curves.
        codecs: in the order of their colours.
        metrics: what was measured.
    """
    name, files, crops = row["image"], row["files"], row["crops"]
    size = crops["side"][0], crops["side"][1]
    judge = judge_of(metrics)
    margins = {codec: margin(row, codec, judge) for codec in files if codec != OURS}
    others = sorted(margins, key=lambda codec: (margins[codec] is None, margins[codec] or 0.0))  # the best rival first
    others.append(ORIGINAL)
    widest = [
        Choice(other, name_of(other), _choice(other, files), place["ours"], place["other"])
        for other in others
        for place in (crops["places"][other],)
    ]
    links = crops["centre"]["links"]
    middle = [Choice(c, name_of(c), _choice(c, files), links[OURS], links[c]) for c in others]
    left = name_of(OURS)
    sliders = slider(f"differ-{number}", f"{name}, where the two differ most", left, widest, size)
    sliders += slider(f"centre-{number}", f"{name}, the centre", left, middle, size)
    strip = "".join(
        f'<figure><img src="{escape(link)}" width="{size[0]}" height="{size[1]}" loading="lazy" '
        f'alt="{escape(f"{name_of(codec)}: {name}, where {left} differs most from the original")}">'
        f"<figcaption>{escape(_choice(codec, files))}</figcaption></figure>"
        for codec, link in _ordered(crops["worst"]["links"])
    )
    own = [r for r in rows if r["image"] == name]
    mine = files[OURS]
    short = "" if mine["fits"] else " This is the smallest file that it can make."
    x, y = crops["worst"]["at"]
    return (
        f'<article class="photo" id="photo-{number}"><h3>{escape(name)}</h3>'
        f'<p class="soft">{row["width"]} x {row["height"]} pixels. {left[0].upper()}{left[1:]} takes '
        f"{rates(mine['bytes'], mine['bpp'])}.{short}</p>"
        f'<div class="sliders">{sliders}</div>{equal_table(files, metrics)}'
        f"<details><summary>All codecs, where {left} differs most from the original</summary>"
        f'<div class="strip">{strip}</div><p class="soft">The crops begin {x} pixels from the left and {y} from '
        "above.</p></details>"
        f"<details><summary>Curves of this photograph</summary>"
        f"{plots(own, [], codecs, [m for m in metrics if m.option != 'kd'])}</details></article>"
    )


def _ordered(links: Mapping[str, str]) -> list[tuple[str, str]]:
    """The original first, then ours, then the others."""
    return sorted(links.items(), key=lambda item: (item[0] != ORIGINAL, item[0] != OURS))


def _choice(codec: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """A codec's name and what its file takes."""
    if codec == ORIGINAL:
        return name_of(ORIGINAL)
    file = files[codec]
    text = f"{name_of(codec)}, {rates(file['bytes'], file['bpp'])}"
    if codec != OURS and not file["fits"]:
        text += f" (its smallest file, {round(100 * (file['bytes'] / files[OURS]['bytes'] - 1)):,} % larger)"
    return text
