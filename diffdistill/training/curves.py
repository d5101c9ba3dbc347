"""The curves of a run as one HTML page, `curves.html`: losses, and the numbers of validations, against samples seen."""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffdistill.evaluation.page.document import document
from diffdistill.evaluation.page.plot import Plot, Point, Series, draw
from diffdistill.files import write_atomic

FILE = "curves.html"
POINTS = 120  # of a line; more are averaged in groups
RATIOS = ("variety", "contrast", "saturation")  # of a student's validation, to the teacher's
MOST_BYTES = 16 << 20  # of an image on the page
LEFT_OUT = ("seconds", "cpu_seconds", "samples", "step")


def write_curves(run: Path, samples: int) -> None:
    """Draw the run's log; does nothing where there is no number in it.

    Args:
        run: the run's folder, with log.jsonl and perhaps grids/.
        samples: samples that the run has seen; later grids are of an end that was given up.
    """
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = series_of(lines)
    if found:
        named = (path for path in (run / "grids").glob("*.png") if re.fullmatch(r"\d{10}", path.stem))
        grids = sorted(path for path in named if int(path.stem) <= samples and path.stat().st_size <= MOST_BYTES)
        write_atomic(run / FILE, _page(run.resolve().name, found, grids[-1] if grids else None).encode())


def series_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """For each number of a log, its points (samples, value), at most `POINTS`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in LEFT_OUT and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(key, []).append((float(line["samples"]), float(value)))
    return {key: _thinned(points) for key, points in found.items()}


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(statistics.fmean(p[0] for p in group), statistics.fmean(p[1] for p in group)) for group in groups]


def _page(name: str, found: Mapping[str, list[tuple[float, float]]], grid: Path | None) -> str:
    validation = {key.removeprefix("validation/"): v for key, v in found.items() if key.startswith("validation/")}
    ratios = {key: validation[key] for key in RATIOS if key in validation}
    plots = []
    if ratios:
        plots.append(_plot("against the teacher’s", ratios, (1.0, "teacher"), "1 is as the teacher"))
    plots += [_plot(key, {key: points}) for key, points in validation.items() if key not in ratios]
    plots += [_plot(key, {key: points}) for key, points in found.items() if not key.startswith("validation/")]
    image = ""
    if grid is not None:
        data = base64.b64encode(grid.read_bytes()).decode()
        image = (
            f"<section><h2>Images after {int(grid.stem):,} samples</h2>"
            f'<img alt="the last grid of images" src="data:image/png;base64,{data}"></section>'
        )
    header = (
        "<p>Each number of the run's log against the samples seen. Of a line with more than "
        f"{POINTS} points, neighbours are averaged.</p>"
    )
    main = f'<section><h2>Curves</h2><div class="plots">{"".join(plots)}</div></section>{image}'
    return document(name, header, main, "diffdistill train")


def _plot(
    title: str,
    lines: Mapping[str, list[tuple[float, float]]],
    floor: tuple[float, str] | None = None,
    note: str = "",
) -> str:
    series = [
        Series(key, [Point(x, y, title=f"{key} {y:.4g} after {x:,.0f} samples") for x, y in points], i)
        for i, (key, points) in enumerate(lines.items())
    ]
    return draw(Plot(title, "samples", series, note, floor=floor, carry=False))
