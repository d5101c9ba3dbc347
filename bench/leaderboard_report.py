"""The leaderboard's table (docs/results.md, between its two marks) and plot, from what `leaderboard.py` left."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sweep_rows import best_by_steps, read_rows

from diffdistill.errors import UserError
from diffdistill.evaluation.page.axes import spread
from diffdistill.files import write_atomic

START, END = "<!-- leaderboard -->", "<!-- end of leaderboard -->"


def collect(out: Path, entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record a run that is done: name, seed, images, cpu_minutes, peak_mib, rows of the product, curve."""
    found = []
    for name in entries:
        for run in sorted(out.glob(f"{name}-s[0-9]*")):
            last = _last(run / "log.jsonl")
            rows = read_rows(run / "final" / "sweep.json")
            if not rows or last is None:
                continue
            found.append(
                {
                    "name": name,
                    "seed": int(run.name.rpartition("-s")[2]),
                    "images": last["samples"],
                    "cpu_minutes": last["cpu_seconds"] / 60,
                    "peak_mib": json.loads((run / "memory.json").read_text())["peak_mib"],
                    "best": best_by_steps(rows),
                    "curve": _curve(run),
                }
            )
    return found


def check_one_race(found: list[dict[str, Any]], sweeps: Sequence[Path]) -> None:
    """Rows of other numbers of images, in training or in measuring, or of other draws cannot be compared.

    Raises:
        UserError: the runs differ in them; the message names two that do.
    """
    seen: dict[str, str] = {}
    for record in found:
        seen.setdefault(f"trained on {record['images']:,} images", f"{record['name']}, seed {record['seed']}")
    _refuse_two(seen)
    seen = {}
    for path in sweeps:
        sweep = json.loads(path.read_text())
        seen.setdefault(f"measured on {sweep['pictures']} images for each of the seeds {sweep['seeds']}", str(path))
    _refuse_two(seen)


def _refuse_two(seen: Mapping[str, str]) -> None:
    if len(seen) > 1:
        (how, one), (other_how, other) = list(seen.items())[:2]
        raise UserError(f"{one} is {how}, but {other} is {other_how}; make them alike, or use another --out")


def _last(log: Path) -> dict[str, Any] | None:
    lines = log.read_text().splitlines() if log.is_file() else []
    return json.loads(lines[-1]) if lines else None


def _curve(run: Path) -> list[dict[str, Any]]:
    """images, cpu_minutes, steps, kd of what was exported on the way, at its best guidance."""
    rows, log = read_rows(run / "curve" / "sweep.json"), (run / "log.jsonl").read_text().splitlines()
    at = {line["samples"]: line["cpu_seconds"] / 60 for line in map(json.loads, log)}
    points = []
    for name in dict.fromkeys(row["generator"] for row in rows):
        images = max(at) if name == "export" else int(name.removeprefix("export-"))
        for steps, row in best_by_steps(rows, name).items():
            kd = row["mean"]["kd"]
            near = min(at, key=lambda samples: abs(samples - images))  # the log has every tenth step
            points.append({"images": images, "cpu_minutes": at[near] * images / near, "steps": steps, "kd": kd})
    return points


def _over_runs(values: list[float], digits: int) -> str:
    text = f"{statistics.fmean(values):.{digits}f}"
    text = text.removeprefix("0") if digits else text
    if len(values) < 2:
        return text
    spread = f"{statistics.stdev(values):.{digits}f}"
    return f"{text} ± {spread.removeprefix('0') if digits else spread}"


def _lowest_end(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of a curve at the number of steps that ends lowest, in order."""
    end = max((p["images"] for p in curve), default=0)
    at = min(((p["kd"], p["steps"]) for p in curve if p["images"] == end), default=(0, 0))[1]
    return sorted((p for p in curve if p["steps"] == at), key=lambda p: p["images"])


def _at(curve: list[dict[str, Any]], minutes: float) -> str:
    """KD after so many CPU minutes, between the points around it, and its number of steps; empty outside the curve."""
    points = _lowest_end(curve)
    for a, b in pairwise(points):
        if a["cpu_minutes"] <= minutes <= b["cpu_minutes"]:
            share = (minutes - a["cpu_minutes"]) / (b["cpu_minutes"] - a["cpu_minutes"])
            return f"{_over_runs([a['kd'] + share * (b['kd'] - a['kd'])], 3)} at {a['steps']}"
    return ""


def _variety(rows: list[dict[str, Any]], teacher: dict[str, Any] | None) -> list[str]:
    """Variety, and Vendi score beyond the first image, over the teacher's; two empty cells where one is missing."""
    means = [row["mean"] for row in ([] if teacher is None else [teacher, *rows])]
    if not means or any(mean.get(key) is None for mean in means for key in ("variety", "vendi")):
        return ["", ""]
    other, *own = means
    return [
        _over_runs([mean["variety"] / other["variety"] for mean in own], 2),
        _over_runs([(mean["vendi"] - 1) / (other["vendi"] - 1) for mean in own], 2),
    ]


def table(found: list[dict[str, Any]], teacher: list[dict[str, Any]]) -> str:
    """Markdown; methods in order of their best KD, the teacher's rows last."""
    names = list(dict.fromkeys(record["name"] for record in found))
    best_teacher = best_by_steps(teacher)
    finest = best_teacher[max(best_teacher)] if best_teacher else None
    runs = {name: [record for record in found if record["name"] == name] for name in names}
    steps = sorted({n for record in found for n in record["best"]})
    reach = {
        name: min(statistics.fmean(r["best"][n]["mean"]["kd"] for r in runs[name]) for n in steps) for name in names
    }
    equal = math.floor(10 * min(record["cpu_minutes"] for record in found)) / 10  # the shortest run has it
    head = ["", "runs", "images", "CPU min", "MiB", *(f"KD, {n}" for n in steps), "at", "FD", "align", "recall"]
    head += ["variety", "Vendi", f"variety, {steps[0]}"]
    curves = any(record["curve"] for record in found)
    if curves:
        head.append(f"KD after {equal:g} min")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in sorted(names, key=reach.__getitem__):
        own = runs[name]
        at = min(steps, key=lambda n: statistics.fmean(r["best"][n]["mean"]["kd"] for r in own))
        best = [record["best"][at] for record in own]
        scale = best[0]["guidance"]
        where = f"{at}" if scale == 1 else f"{at}, guidance {scale:g}"
        cells = [
            name,
            str(len(own)),
            f"{own[0]['images']:,}",
            f"{statistics.fmean(r['cpu_minutes'] for r in own):.0f}",
            f"{max(r['peak_mib'] for r in own):,}",
            *(_over_runs([r["best"][n]["mean"]["kd"] for r in own], 3) for n in steps),
            where,
            _over_runs([row["mean"]["fd"] for row in best], 0),
            _over_runs([row["mean"]["align_score"] for row in best], 3),
            _over_runs([row["mean"]["recall"] for row in best], 2),
            *_variety(best, finest),
            _variety([record["best"][steps[0]] for record in own], finest)[0],
        ]
        if curves:
            cells.append(next((_at(r["curve"], equal) for r in own if r["curve"]), ""))
        lines.append("| " + " | ".join(cells) + " |")
    if teacher:
        for at in (n for n in (8, 50) if n in best_teacher):
            row = best_teacher[at]
            kds = [_over_runs([best_teacher[n]["mean"]["kd"]], 3) if at == 8 else "" for n in steps]
            last = [_over_runs([row["mean"][key]], n) for key, n in (("fd", 0), ("align_score", 3), ("recall", 2))]
            last += [*_variety([row], finest), _variety([best_teacher[steps[0]]], finest)[0] if at == 8 else ""]
            where = f"{at}, guidance {row['guidance']:g}: {_over_runs([row['mean']['kd']], 3)}"
            cells = ["teacher", "", "", "", "", *kds, where, *last]
            lines.append("| " + " | ".join([*cells, ""] if curves else cells) + " |")
    return "\n".join(lines)


def from_table(results: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs and the teacher's rows as far as the table of `results` has them, for a plot of KD against steps."""
    lines = results.read_text().partition(START)[2].partition(END)[0].strip().splitlines()
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    found, teacher = [], []
    for row in rows[1:]:
        cells = dict(zip(head, row, strict=True))
        steps = {int(key.removeprefix("KD, ")): cell for key, cell in cells.items() if key.startswith("KD, ")}
        kds = {n: float(cell.split(" ")[0]) for n, cell in steps.items() if cell}
        if row[0] != "teacher":
            found.append({"name": row[0], "curve": [], "best": {n: {"mean": {"kd": kd}} for n, kd in kds.items()}})
            continue
        number, _, kd = cells["at"].partition(", guidance ")
        kds |= {int(number): float(kd.partition(": ")[2])}
        teacher += [{"generator": "teacher", "steps": n, "guidance": 1.0, "mean": {"kd": kd}} for n, kd in kds.items()]
    return found, teacher


def plot(found: list[dict[str, Any]], teacher: list[dict[str, Any]], path: Path) -> None:
    """KD against images, against CPU minutes, and against steps; each line has its name at its end.

    Without curves there is KD against steps alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = ["images seen", "CPU minutes", "steps"] if any(record["curve"] for record in found) else ["steps"]
    size = (5 * len(labels) if len(labels) > 1 else 7, 5.2)
    figure, grid = pyplot.subplots(1, len(labels), figsize=size, layout="constrained", squeeze=False)
    axes = list(grid[0])
    lines: list[list[Line]] = [[] for _ in labels]
    shown: dict[str, dict[str, Any]] = {}  # of several runs the one that has a curve
    for record in sorted(found, key=lambda record: not record["curve"]):
        shown.setdefault(record["name"], record)
    for k, name in enumerate(dict.fromkeys(record["name"] for record in found)):
        record = shown[name]
        look = {"color": f"C{k % 10}", "marker": "os^vDP*X"[k % 8], "markersize": 4, "linewidth": 1.3}
        points = _lowest_end(record["curve"])
        if points:
            for own, key in zip(lines, ("images", "cpu_minutes"), strict=False):
                own.append(Line(name, [p[key] for p in points], [p["kd"] for p in points], look))
        numbers = sorted(record["best"])
        lines[-1].append(Line(name, numbers, [record["best"][n]["mean"]["kd"] for n in numbers], look))
    best = {n: row["mean"]["kd"] for n, row in best_by_steps(teacher).items()} if teacher else {}
    few = [n for n in best if n <= 8]
    if few:
        lines[-1].append(Line("teacher", few, [best[n] for n in few], {"color": "black", "linestyle": "--"}))
    steps = sorted({x for line in lines[-1] for x in line.x})
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xticks(steps, [str(n) for n in steps])
    axes[-1].minorticks_off()
    for axis, own, label in zip(axes, lines, labels, strict=True):
        for line in own:
            axis.plot(line.x, line.y, **line.look)
        axis.set_xlabel(label)
        axis.set_ylabel("KD, MobileNetV2 (lower is better)")
        axis.set_ylim(bottom=0)
        ends = [(line.x[-1], line.y[-1], line.name, str(line.look["color"])) for line in own]
        if best:
            at = best[max(best)]
            axis.axhline(at, color="black", linestyle=":", linewidth=1)
            ends.append((axis.get_xlim()[1], at, f"teacher, {max(best)} steps", "black"))
        _name_ends(axis, ends)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


class Line(NamedTuple):
    """A line of the plot: its name, its points, and how it looks."""

    name: str
    x: list[float]
    y: list[float]
    look: dict[str, Any]


def _name_ends(axis: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside the axis at the height of its end, moved apart where names would overlap."""
    to_axes = axis.transData + axis.transAxes.inverted()
    places = sorted((*reversed(to_axes.transform((x, y))), name, color) for x, y, name, color in ends)
    heights = spread([y for y, *_ in places], 0.045, 0.0, 1.0)
    for (y, x, name, color), at in zip(places, heights, strict=True):
        thin = {"color": color, "linewidth": 0.6, "transform": axis.transAxes, "clip_on": False}
        axis.plot([x, 1.0, 1.04], [y, y, at], **thin)
        axis.text(1.05, at, name, color=color, fontsize=8, va="center", transform=axis.transAxes)


def write(out: Path, entries: Mapping[str, Any], results: Path, picture: Path) -> list[dict[str, Any]]:
    """Put the table between the marks of `results`, draw the plot; returns a short record a run."""
    found = collect(out, entries)
    if not found:
        return []
    teacher = read_rows(out / "teacher" / "sweep.json")
    sweeps = [out / f"{record['name']}-s{record['seed']}" / "final" / "sweep.json" for record in found]
    check_one_race(found, [*sweeps, *([out / "teacher" / "sweep.json"] if teacher else [])])
    before, _, rest = results.read_text().partition(START)
    _, marked, after = rest.partition(END)
    if not marked:
        raise ValueError(f"{results} lacks the lines {START} and {END}, between which the table goes")
    write_atomic(results, f"{before}{START}\n{table(found, teacher)}\n{END}{after}".encode())
    plot(found, teacher, picture)
    short = ("name", "seed", "images", "cpu_minutes", "peak_mib")
    return [
        {**{k: r[k] for k in short}, "kd": {n: round(row["mean"]["kd"], 4) for n, row in r["best"].items()}}
        for r in found
    ]
