"""A map of probes as one HTML page: for each number a table of taps and noise levels, coloured as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from diffdistill.evaluation.page.document import document


class Measure(NamedTuple):
    """A number of a cell: its key and heading, whether more is better (None: neither), its form and what it says."""

    key: str
    heading: str
    higher: bool | None
    form: str
    words: str


MEASURES = (
    Measure("linear", "Linear probe", True, "{:.1%}", "Accuracy of logistic regression on the features."),
    Measure("knn", "k-NN", True, "{:.1%}", "Accuracy of a vote of the nearest training features, by cosine."),
    Measure("gap", "Recoverability gap", False, "{:.3f}",
            "How much of another encoder’s features cannot be read off these linearly: 1 - R² of ridge regression. 0: "
            "all of it can. 1: no better than the mean. It is above 1 where images are too few to fit on."),
    Measure("alignment", "Alignment", None, "{:.3f}",
            "Mean squared distance between unit features of two noisy copies of an image. Near 0, noise hardly "
            "changes the features. Features that are all alike have 0 too, so read it beside uniformity."),
    Measure("uniformity", "Uniformity", None, "{:.2f}",
            "log of the mean of exp(-2 d²) over pairs of images, of unit features. The lower, the more evenly spread."),
)  # fmt: skip
HEAT_STYLE = """
table.heat td { text-align: right; font-variant-numeric: tabular-nums; padding: .25rem .6rem;
  background: color-mix(in oklab, var(--g0) calc(var(--h) * 55%), var(--page)); }
table.heat td.best { outline: 2px solid var(--ink); outline-offset: -2px; font-weight: 650; }
table.heat th { font-weight: 500; } .maps { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; }
"""


def html_page(record: Mapping[str, Any]) -> str:
    """The page; it loads nothing from elsewhere.

    Args:
        record: "settings" and "models", as `ProbeMap.run` makes them.
    """
    about, models = record["settings"], record["models"]
    measures = [m for m in MEASURES if any(m.key in cell for model in models for cell in model["cells"])]
    title = f"What the features of {len(models)} network{'' if len(models) == 1 else 's'} tell"
    links = "".join(f'<a href="#{m.key}">{m.heading}</a>' for m in measures)
    sections = "".join(_section(measure, models) for measure in measures)
    header = f"""<p>Each network gets noisy latents and the empty prompt. The output of each of its blocks is averaged
over positions, and probes are fitted to these features. Blocks stand in the order they run in, the input on top.
Noise is sigma /
alpha: at 1, noise and image have equal weight. In each section, a darker cell is better, or higher where neither is
better. The best cell of a map has a frame.</p>
<p>{_errors(about)}</p>
{_best(measures, models)}
<nav>{links}<a href="#settings">What was measured</a></nav>"""
    main = f"""{sections}<section id="settings"><h2>What was measured</h2>{_settings(about, models)}</section>
"""
    return document(title, header, main, "diffdistill eval probe", style=HEAT_STYLE)


def best_cell(cells: Sequence[Mapping[str, Any]], measure: Measure) -> Mapping[str, Any] | None:
    """The cell with the best value of a measure; None where no cell has it."""
    known = [cell for cell in cells if measure.key in cell]
    if not known:
        return None
    if measure.higher is None:
        return None
    sign = 1 if measure.higher else -1
    return max(known, key=lambda cell: sign * cell[measure.key])


def _best(measures: Sequence[Measure], models: Sequence[Mapping[str, Any]]) -> str:
    chosen = [m for m in measures if m.key in ("linear", "knn", "gap")]
    head = "".join(f"<th>{m.heading}</th>" for m in chosen)
    lines = []
    for model in models:
        cells = ""
        for measure in chosen:
            best = best_cell(model["cells"], measure)
            if best is None:
                cells += "<td>–</td>"
                continue
            where = f"{escape(best['tap'])}, noise {best['noise_ratio']:g}"
            cells += f"<td>{measure.form.format(best[measure.key])}<small> {where}</small></td>"
        lines.append(f"<tr><th>{escape(model['name'])}</th>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th>best of each network</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _errors(about: Mapping[str, Any]) -> str:
    """How sure accuracies are, in words."""
    error = 0.5 / about["test"] ** 0.5
    text = (
        f"With {about['test']} test images, an accuracy has a standard error of up to {error:.1%}. Always the most "
        f"frequent label is right in {about['most_frequent']:.1%}. The best cell is chosen on the same test images, so "
        "its number flatters."
    )
    return text + ("" if about["test"] >= 1000 else " These are few images: differences of a few points mean little.")


def _section(measure: Measure, models: Sequence[Mapping[str, Any]]) -> str:
    better = {True: "Higher is better. ", False: "Lower is better. ", None: ""}[measure.higher]
    values = [cell[measure.key] for model in models for cell in model["cells"] if measure.key in cell]
    low, high = min(values), max(values)
    maps = "".join(_map(measure, model, low, high) for model in models)
    return (
        f'<section id="{measure.key}"><h2>{measure.heading}</h2><p>{measure.words} {better}All maps of this section '
        f'share one scale of colours.</p><div class="maps">{maps}</div></section>\n'
    )


def _map(measure: Measure, model: Mapping[str, Any], low: float, high: float) -> str:
    cells = {(cell["tap"], cell["noise_ratio"]): cell for cell in model["cells"]}
    taps, ratios = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    best = best_cell(model["cells"], measure)
    head = "".join(f"<th>{ratio:g}</th>" for ratio in ratios)
    lines = []
    for tap in taps:
        row = ""
        for ratio in ratios:
            cell = cells[tap, ratio]
            if measure.key not in cell:
                row += f'<td title="{escape(cell.get("absent", ""))}">–</td>'
                continue
            share = (cell[measure.key] - low) / (high - low) if high > low else 0.5
            heat = 1 - share if measure.higher is False else share
            mark = ' class="best"' if cell is best else ""
            hint = f' title="noise used: {cell["noise_found"]:.4g}"' if "noise_found" in cell else ""
            row += f'<td{mark}{hint} style="--h:{heat:.3f}">{measure.form.format(cell[measure.key])}</td>'
        lines.append(f"<tr><th>{escape(tap)}</th>{row}</tr>")
    return (
        f"<figure><figcaption><b>{escape(model['name'])}</b></figcaption>"
        f'<div class="scroll" tabindex="0"><table class="heat"><thead><tr><th>noise</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></figure>"
    )


def _settings(about: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    labels = ", ".join(escape(name) for name in about["labels"])
    target = "none" if about["target"] is None else escape(about["target"])
    digests = "".join(
        f"<dt>{escape(model['name'])}</dt><dd>{escape(model['made_from'])}, <code>{escape(model['digest'])}</code></dd>"
        for model in models
    )
    why = f" ({escape(about['why_left_out'])})" if about["why_left_out"] else ""
    return (
        f"<dl><dt>images</dt><dd>{escape(str(about['images']))}: {about['train']} to fit, {about['test']} to test, "
        f"{about['left_out']} left out{why}; {escape(about['split'])}; hash of pixels and labels "
        f"<code>{escape(about['data'])}</code></dd><dt>labels</dt><dd>{labels}</dd>"
        f"<dt>linear probe</dt><dd>logistic regression on standardised features, C = 1, trained to convergence</dd>"
        f"<dt>k-NN</dt><dd>{about['neighbours']} neighbours by cosine, standardised features</dd>"
        f"<dt>uniformity</dt><dd>of {about['uniformity_of']} test images</dd>"
        f"<dt>the other encoder</dt><dd>{target}; ridge penalty N / 100</dd>{digests}</dl>"
    )
