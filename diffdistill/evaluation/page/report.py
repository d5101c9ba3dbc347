"""A sweep as one HTML page that needs no network and no library, and that can be read without scripts.

Notable:
- it holds curves, images, all numbers, the protocol and the record `sweep.json` itself;
- every string of the record is escaped. A content security policy forbids the page to load anything, and allows its own
  script alone, by its hash;
- the same sweep gives the same bytes: there is no date and no random id.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from diffdistill.evaluation.page.columns import (
    IN_WORDS,
    Column,
    best_of,
    columns_of,
    described,
    fewer_seeds,
    headline_column,
    level_of,
    plotted,
    rows_of,
)
from diffdistill.evaluation.page.curves import curves, trade_off
from diffdistill.evaluation.page.document import document
from diffdistill.evaluation.page.images import grids, neighbours
from diffdistill.evaluation.page.read import read_sweep
from diffdistill.evaluation.page.record import Sweep
from diffdistill.evaluation.page.tables import all_rows, best_rows, generators, medians
from diffdistill.evaluation.page.words import (
    agreement_level,
    errors,
    listed,
    some_fewer,
    timing,
    towers_in_words,
    towers_of,
)


@dataclass
class Numbered:
    """Captions of figures and tables, numbered in the order in which they are made."""

    figures: int = 0
    tables: int = 0

    def figure(self, text: str) -> str:
        """The caption of the next figure."""
        self.figures += 1
        return f"<figcaption><b>Figure {self.figures}.</b> {text}</figcaption>"

    def table(self, text: str) -> str:
        """The caption of the next table."""
        self.tables += 1
        return f"<figcaption><b>Table {self.tables}.</b> {text}</figcaption>"


def html_report(folder: str | Path, title: str | None = None) -> str:
    """The page of the sweep in `folder`.

    Args:
        folder: a folder that `diffdistill eval sweep` wrote, with sweep.json and PNG files.
        title: the page's title; by default it names the generators.

    Raises:
        UserError: the sweep breaks its contract, or has no row.
    """
    sweep = read_sweep(folder)
    columns = columns_of(sweep)
    ranked_by = headline_column(columns)
    title = title or f"{listed([g.name for g in sweep.generators])}: quality against steps and guidance"
    captions = Numbered()
    best = _best(sweep, columns, ranked_by, captions)
    sections = [
        ("curves", "Curves", _curves(sweep, columns, ranked_by, captions)),
        ("pictures", "Side by side", _pictures(sweep, ranked_by, captions)),
        ("nearest", f"Nearest {sweep.nearest_of} images", _nearest(sweep, ranked_by, captions)),
        ("numbers", "All numbers", _numbers(sweep, columns, captions)),
        ("protocol", "Protocol", _protocol(sweep)),
    ]
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in there)
    body = "".join(f'<section id="{key}"><h2>{name}</h2>{inside}</section>\n' for key, name, inside in there)
    record = json.dumps(sweep.raw, ensure_ascii=False).replace(
        "<", "\\u003c"
    )  # so that nothing in it ends the script element
    data = f'<script type="application/json" id="sweep">{record}</script>\n'
    header = f"""<p>{_what_was_measured(sweep, columns)}</p>
{_incomplete(sweep)}
<p class="headline">{_headline(sweep, ranked_by)}</p>
{best}
<nav>{links}</nav>"""
    return document(title, header, body, "diffdistill eval report", data=data)


def headline(sweep: Sweep, ranked_by: Column | None) -> list[tuple[str, str]]:
    """Each generator's best row, students first: its name and setting, and its number with the error."""
    said: list[tuple[str, str]] = []
    for generator in sorted(sweep.generators, key=lambda g: g.kind != "student"):
        rows = rows_of(sweep, generator.name)
        row = best_of(rows, ranked_by)
        if row is not None and ranked_by is not None:
            who = f"{generator.name}, " if len(rows) == 1 else f"{generator.name}\u2019s best, "
            metric = f"{ranked_by.label} " if not said else ""
            said.append((f"{who}{described(sweep, row)}: ", f"{metric}{ranked_by.with_error(row)}"))
    return said


def _headline(sweep: Sweep, ranked_by: Column | None) -> str:
    said = headline(sweep, ranked_by)
    sentence = "; ".join(f"{escape(who)}<b>{escape(number)}</b>" for who, number in said)
    return f"{sentence}." if said else "No row has a number yet."


def _what_was_measured(sweep: Sweep, columns: Sequence[Column]) -> str:
    names = [column.label for column in plotted(sweep, columns) if column.key != sweep.agreement_metric]
    protocol = sweep.protocol.get("protocol")
    under = f" under protocol <code>{escape(protocol)}</code>" if isinstance(protocol, str) else ""
    text = (
        f"{escape(listed(names) or 'Numbers')} of {sweep.pictures:,} images per seed ({_seeds(sweep)}) against "
        f"{sweep.reference_n:,} real ones of <code>{escape(sweep.reference)}</code>{under}"
    )
    if sweep.agreement_metric:
        of = f" of {sweep.agreement_pictures:,} images" if sweep.agreement_pictures else ""
        text += f"; agreement{of} with their captions by <code>{escape(towers_of(sweep))}</code>"
    steps = listed([str(steps) for steps in sorted({row.steps for row in sweep.rows})])
    guidances = listed([f"{guidance:g}" for guidance in sorted({row.guidance for row in sweep.rows})])
    names = [generator.name for generator in sweep.generators]
    noise = f", with noise while sampling, eta {sweep.eta:g}" if sweep.eta else ""
    noise = ", without noise while sampling (eta 0)" if sweep.eta == 0 else noise
    return f"{text}; of {escape(listed(names))}, at {steps} steps and guidance {guidances}{noise}."


def _incomplete(sweep: Sweep) -> str:
    if sweep.complete:
        return ""
    full = sum(not fewer_seeds(row) for row in sweep.rows)
    return (
        f'<p class="incomplete" role="note"><b>This sweep is not complete.</b> {len(sweep.rows)} rows are there, '
        f"{full} of them with every seed; what is best among them may change.</p>"
    )


def _best(sweep: Sweep, columns: Sequence[Column], ranked_by: Column | None, captions: Numbered) -> str:
    if ranked_by is None or all(best_of(rows_of(sweep, g.name), ranked_by) is None for g in sweep.generators):
        return ""
    text = (
        f"The row of each generator whose {escape(ranked_by.label)} is best. It is chosen by the numbers shown, out of "
        "all steps and guidance scales, so it looks a little better than it is, and the more so the more settings "
        f"there are. {errors(sweep)} Passes: counted network passes for one image. "
        f"{timing(sweep, columns)}"
    )
    return f"<figure>{best_rows(sweep, columns, ranked_by, captions.table(text))}</figure>"


def _curves(sweep: Sweep, columns: Sequence[Column], ranked_by: Column | None, captions: Numbered) -> str:
    shown = plotted(sweep, columns)
    drawn = curves(sweep, shown, ranked_by)
    if not drawn:
        return ""
    several = any(len({row.guidance for row in rows_of(sweep, g.name)}) > 1 for g in sweep.generators)
    text = "Each number against the number of steps, doubling along the axis. A line is one generator at one guidance"
    if several:
        text += " (g; fainter is lower"
        text += f", thick is where its {escape(ranked_by.label)} is best)" if ranked_by else ")"
    text += f". {errors(sweep, 'Bars')} Dotted: a line\u2019s last value carried across, not measured along it."
    if any(level_of(sweep, column) for column in shown):
        text += " Dashed: real images that are not in the reference, measured in the same way"
        text += f"; {agreement_level(sweep)}." if agreement_level(sweep) else "."
    text += " Hover over a point for its numbers."
    words = "".join(f"<dt>{escape(column.label)}</dt><dd>{_in_words(sweep, column)}</dd>" for column in shown)
    out = f'<figure><div class="plots">{"".join(drawn)}</div>{captions.figure(text)}</figure><dl>{words}</dl>'
    distance = next((column for column in shown if column.better == "lower"), None)
    agreement = next((column for column in shown if column.key == sweep.agreement_metric), None)
    if plot := trade_off(sweep, distance, agreement):
        text = "Distance against agreement as guidance grows, at each generator\u2019s largest number of steps. "
        text += "The number beside a point is its guidance scale. " if several else ""
        text += _level_point(sweep, distance, agreement)
        out += f'<figure class="beside"><div>{plot}</div>{captions.figure(text)}</figure>'
    return out


def _level_point(sweep: Sweep, *columns: Column | None) -> str:
    found = [(column, level) for column in columns if column is not None and (level := level_of(sweep, column))]
    said = [
        f"{escape(column.label)} {column.number(value)}".replace(" ", "\u00a0")  # so that no line breaks within it
        + ("" if whose == "real images" else f" ({whose})")
        for column, (value, whose) in found
    ]
    return f"Real images, not drawn: {', '.join(said)}." if said else ""


def _in_words(sweep: Sweep, column: Column) -> str:
    if column.key == sweep.agreement_metric:
        words = f"mean cosine of an image and its caption, <code>{escape(towers_of(sweep))}</code>"
    else:
        words = IN_WORDS.get(column.key, "")
    return f"{words}; {column.better} is better" if column.better else words


def _pictures(sweep: Sweep, ranked_by: Column | None, captions: Numbered) -> str:
    drawn = grids(sweep, ranked_by)
    if not drawn:
        return ""
    text = (
        f"The same {len(sweep.prompts)} prompts and the same starting noise in every row. None was chosen by its look."
    )
    if ranked_by:
        text += f" Best guidance: by {escape(ranked_by.label)}."
    return f"<figure>{drawn}{captions.figure(text)}</figure>"


def _nearest(sweep: Sweep, ranked_by: Column | None, captions: Numbered) -> str:
    drawn = neighbours(sweep, ranked_by)
    table = medians(sweep, ranked_by, "")
    if not drawn and not table:
        return ""
    out = ""
    if drawn:
        text = (
            f"Each image above the {sweep.nearest_of} image that is nearest to it. The number is their distance in the "
            "protocol\u2019s features."
        )
        out += f"<figure>{drawn}{captions.figure(text)}</figure>"
    if table:
        text = (
            f"How to read it: a distance of 0 is a copy of a {sweep.nearest_of} image. Real images that are not "
            "among them show how near images come that were not copied. A median far below theirs is a hint of "
            "copying and no proof: "
        )
        text += (
            "generators are given training prompts, whose own images are in the training set, and held-out "
            "concepts have similar images there."
            if sweep.nearest_of == "training"
            else "what the generators were trained on is not known here, and the prompts may be those of the reference."
        )
        out += f"<figure>{table}{captions.table(text)}</figure>"
    return out


def _numbers(sweep: Sweep, columns: Sequence[Column], captions: Numbered) -> str:
    text = f"Every row. {errors(sweep)} Bold: the best of a column. A dash: not measured. A click on a head sorts. "
    text += f"Seeds: how many of {len(sweep.seeds)} are measured so far. " if some_fewer(sweep) else ""
    text += timing(sweep, columns)
    return f"<figure>{all_rows(sweep, columns, captions.table(text))}</figure>"


def _protocol(sweep: Sweep) -> str:
    record = {key: value for key, value in sweep.raw.items() if key not in ("rows", "floor")}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\n([\d\s,]+?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)  # seeds in one line
    prompts = "".join(f"<li>{escape(prompt)}</li>" for prompt in sweep.prompts)
    return (
        f"{towers_in_words(sweep)}<p>Numbers compare only under the same protocol, reference and number of "
        "images. What these were "
        f'made with, to copy:</p>{generators(sweep)}<pre tabindex="0">{escape(text)}</pre>'
        f"<details><summary>The {len(sweep.prompts)} prompts of the images</summary><ol>{prompts}</ol></details>"
    )


def _seeds(sweep: Sweep) -> str:
    return f"seed{'' if len(sweep.seeds) == 1 else 's'} {listed([str(seed) for seed in sweep.seeds])}"
