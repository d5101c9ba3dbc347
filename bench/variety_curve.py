"""KD against variety over one setting: quickstart's recipe is trained at each value, and compared with its teacher.

    python bench/variety_curve.py                                # over method.regression.weight
    python bench/variety_curve.py --setting method.times.t_max_final --values 0.1 0.25 0.5

Prints the table. OUT/curve.json has its numbers, and OUT/curve.png is the plot, with a line for each encoder. A run
that is done is not made again, and one of other settings is refused. At the defaults a value trains in about 15 CPU
minutes and is measured in 2. Only the tuning encoders take part.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from recipe_runs import COLUMNS, cells, compared, train

from diffdistill.files import write_json_atomic

CONFIG = "configs/emoji_quickstart.yaml"
WEIGHTS = ("0", "0.06", "0.25", "1")


def train_at(value: str, o: argparse.Namespace) -> Path:
    """The folder of the run at this value, trained to its end."""
    run: Path = o.out / f"{o.setting}-{value}-{o.images}-s{o.seed}"
    more = {"training.samples": str(o.images), "training.seed": str(o.seed), "training.max_minutes": "0"}
    train(run, CONFIG, {o.setting: value, **more})
    return run


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
    parser.add_argument("--setting", default="method.regression.weight")
    parser.add_argument("--values", nargs="+", default=WEIGHTS)
    parser.add_argument("--images", type=int, default=24000)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/variety_curve"))
    o = parser.parse_args()
    runs = {value: train_at(value, o) for value in o.values}
    rows, name = compared(runs, o.out / "compared", "--pictures", str(o.pictures)), o.setting.removeprefix("method.")
    write_json_atomic(o.out / "curve.json", {"setting": o.setting, "rows": rows})
    plot(rows, name, o.out / "curve.png")
    print(f"{', '.join(rows[0]['kd'])}:\n\n| {name} | {COLUMNS} |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {' | '.join(cells(row))} |")


if __name__ == "__main__":
    main()
