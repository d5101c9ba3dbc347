"""Images in a page: strips under their prompts, and pairs of an image and its nearest training or reference image.

Each PNG is inlined as base64. A strip of k images is one <img>, whose columns line up with `--k` cells of a CSS grid,
each `--cell` pixels wide. Small images are shown at a whole multiple of their size, so that pixels stay square.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from diffdistill.evaluation.page.columns import HELD_OUT, Column, best_of, digits, error_of, guided, rows_of, setting
from diffdistill.evaluation.page.record import Measured, Row, Sweep
from diffdistill.evaluation.page.strips import Strip, read_strip

SMALL = 96  # up to this many pixels, images are enlarged without smoothing
CELL = 80  # pixels at which a larger image is shown


def cell_of(side: int) -> int:
    """Pixels at which an image of `side` pixels is shown.

    >>> [cell_of(side) for side in (8, 32, 64, 96, 512)]
    [64, 64, 64, 96, 80]
    """
    return side * max(1, 64 // side) if side <= SMALL else CELL


def grids(sweep: Sweep, ranked_by: Column | None) -> str:
    """The best guidance scale of each number of steps, open, and all rows of each scale, folded; "" without strips."""
    rows = [row for generator in sweep.generators for row in rows_of(sweep, generator.name) if row.strip]
    if not rows:
        return ""
    k = len(sweep.prompts)
    strips = {row.strip: read_strip(sweep.folder, row.strip, k) for row in rows if row.strip}
    side = max(picture.side for picture in strips.values())
    images = {name: _image(picture, "an image for each prompt") for name, picture in strips.items()}
    real = ""
    if sweep.floor and sweep.floor.strip:
        own = "the prompts\u2019 own" if sweep.prompts_of == "training" else ""
        real = _row("real images", own, _image(read_strip(sweep.folder, sweep.floor.strip, k), "real images"))

    def grid(chosen: Sequence[Row]) -> str:
        lines = "".join(_strip_row(sweep, row, images[str(row.strip)]) for row in chosen)
        return _sheet(side, _heads(sweep.prompts) + real + lines, k)

    best = []
    for generator in sweep.generators:
        mine = [row for row in rows if row.generator == generator.name]
        for steps in sorted({row.steps for row in mine}):
            at = [row for row in mine if row.steps == steps]
            best.append(best_of(at, ranked_by) or at[0])
    guidances = sorted({row.guidance for row in rows})
    several = len(rows) > len(best)
    title = "Each number of steps at its best guidance" if several else "Each number of steps"
    parts = [_fold(title, len(best), grid(best), True)]
    if several:
        for guidance in guidances:
            chosen = [row for row in rows if row.guidance == guidance]
            parts.append(
                _fold(f"Guidance {guidance:g}{', unguided' if guidance == 1 else ''}", len(chosen), grid(chosen))
            )
    return "".join(parts)


def neighbours(sweep: Sweep, ranked_by: Column | None) -> str:
    """A panel for each generator's best row that has one, and for the floor; "" where there is no panel."""
    panels = []
    for generator in sweep.generators:
        rows = [row for row in rows_of(sweep, generator.name) if row.nearest and row.distances]
        row = best_of(rows, ranked_by) or next(iter(rows), None)
        if row is not None:
            panels.append(_panel(sweep, row, generator.name, setting(row, guided(sweep, generator.name)), "generated"))
    if sweep.floor and sweep.floor.nearest and sweep.floor.distances:
        how = HELD_OUT if sweep.prompts_of == "training" else ""
        panels.append(_panel(sweep, sweep.floor, "real images", how, "held out" if how else "real"))
    return "".join(panels)


def median_distance(measured: Measured) -> tuple[float | None, float | None]:
    """The median distance to the nearest training image, over all images, and its error; None where not measured."""
    return measured.mean.get("nearest_median"), error_of(measured, "nearest_median")


def _panel(sweep: Sweep, measured: Measured, name: str, how: str, upper: str) -> str:
    distances = measured.distances or []
    k = len(distances)
    picture = read_strip(sweep.folder, measured.nearest or "", k, rows=2)
    middle, _ = median_distance(measured)
    decimals = digits(distances)
    cells = "".join(f"<span>{distance:.{decimals}f}</span>" for distance in distances)
    of_all = "" if middle is None else f"<small>median of all {middle:.{decimals}f}</small>"
    label = f"<b>{escape(name)}</b><small>{escape(how)}</small>{of_all}"
    names = f'<span class="which"><small>{upper}</small><small>nearest</small></span>'
    body = (
        f'<div class="row pair"><div class="label">{label}</div>{names}'
        f"{_image(picture, f'{name}: images above, the nearest {sweep.nearest_of} image of each below')}</div>"
        f'<div class="row under"><div class="label"><small>distance</small></div>{_cells(cells)}</div>'
    )
    return _sheet(picture.side, body, k)


def _strip_row(sweep: Sweep, row: Row, image: str) -> str:
    guidance = f", guidance {row.guidance:g}" if guided(sweep, row.generator) else ""
    return _row(row.generator, f"{setting(row, False)}{guidance}", image)


def _row(label: str, small: str, image: str) -> str:
    more = f"<small>{escape(small)}</small>" if small else ""
    return f'<div class="row"><div class="label"><b>{escape(label)}</b>{more}</div>{image}</div>'


def _heads(prompts: Sequence[str]) -> str:
    cells = "".join(f'<span title="{escape(prompt)}">{escape(prompt)}</span>' for prompt in prompts)
    return f'<div class="row heads"><div class="label"></div>{_cells(cells)}</div>'


def _cells(inside: str) -> str:
    return f'<div class="cells">{inside}</div>'


def _sheet(side: int, inside: str, k: int) -> str:
    look = " pixels" if side <= SMALL else ""
    style = f"--cell:{cell_of(side)}px;--k:{k}"
    return f'<div class="scroll" tabindex="0"><div class="sheet{look}" style="{style}">{inside}</div></div>'


def _fold(title: str, rows: int, inside: str, is_open: bool = False) -> str:
    count = f'<span class="count">{rows} row{"" if rows == 1 else "s"}</span>'
    return f"<details{' open' if is_open else ''}><summary>{escape(title)} {count}</summary>{inside}</details>"


def _image(picture: Strip, alt: str = "") -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{escape(alt)}">'
