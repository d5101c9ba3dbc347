"""KD against variety over one setting: the recipe is trained once at each value, and compared with its teacher.

    python bench/variety_curve.py                                # regression.weight of quickstart's recipe
    python bench/variety_curve.py --setting method.times.t_max_final --values 0.1 0.25 0.5

Prints the table. OUT/curve.json has its numbers, and OUT/curve.png is the plot, with a line for each encoder. A run
that is done is not made again. At the defaults a value trains in 8 to 15 CPU minutes and is measured in 2. Only the
tuning encoders take part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

from diffdistill.files import write_json_atomic

WEIGHTS = ("0", "0.03", "0.06", "0.125", "0.25", "0.5")


def train(value: str, o: argparse.Namespace) -> Path:
    """The folder of the run at this value, trained to its end."""
    run = o.out / f"{o.setting.rpartition('.')[2]}-{value}-s{o.seed}"
    if not (run / "export").is_dir():
        settings = {
            o.setting: value,
            "training.samples": str(o.images),
            "training.seed": str(o.seed),
            "training.max_minutes": "0",
            "output_dir": str(run),
            "overwrite": "true",
        }
        argv = [o.config, *(f"--{key}={each}" for key, each in settings.items())]
        subprocess.run([sys.executable, "-m", "diffdistill", "train", *argv], check=True, stdout=sys.stderr)
    return run


def measure(runs: dict[str, Path], o: argparse.Namespace) -> list[dict[str, Any]]:
    """The row of `diffdistill eval compare` of each run, whose name is its value."""
    argv = ["eval", "compare", "--students", *(f"{value}={run / 'export'}" for value, run in runs.items())]
    argv += ["--pictures", str(o.pictures), "--seeds", "0", "--judging", "--out", str(o.out / "compared")]
    done = subprocess.run([sys.executable, "-m", "diffdistill", *argv], check=True, stdout=subprocess.PIPE)
    return [row for row in json.loads(done.stdout)["rows"] if row["name"] in runs]


def plot(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """A line for each encoder, and the teacher at 1, 1."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.2), layout="constrained")
    for encoder in rows[0]["kd"]:
        x, y = ([row[key][encoder] for row in rows] for key in ("variety", "kd"))
        axes.plot(x, y, marker="o", label=encoder)
        for row, *at in zip(rows, x, y, strict=True):
            axes.annotate(row["name"], at, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.plot([1], [1], "k*", markersize=12, label="teacher, 50 steps, guidance 3")
    axes.set_xlabel("variety, over the teacher's")
    axes.set_ylabel("KD, over the teacher's")
    axes.set_title(f"beside each point: {name}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji_quickstart.yaml")
    parser.add_argument("--setting", default="method.regression.weight")
    parser.add_argument("--values", nargs="+", default=WEIGHTS)
    parser.add_argument("--images", type=int, default=23232)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/variety_curve"))
    o = parser.parse_args()
    rows = measure({value: train(value, o) for value in o.values}, o)
    write_json_atomic(o.out / "curve.json", {"setting": o.setting, "config": o.config, "rows": rows})
    plot(rows, o.setting.removeprefix("method."), o.out / "curve.png")
    encoders = list(rows[0]["kd"])
    name, columns = o.setting.removeprefix("method."), "KD | variety | Vendi score"
    print(f"{', '.join(encoders)}:\n\n| {name} | {columns} |\n|---|---|---|---|")
    for row in rows:
        cells = (", ".join(f"{v:.2f}".lstrip("0") for v in row[key].values()) for key in ("kd", "variety", "vendi"))
        print(f"| {row['name']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
