"""KD against images seen: the one-step student of every checkpoint that a run has kept.

    python bench/kd_curve.py runs/emoji_swiftbrush --n 1024

Take `--training.checkpoints_limit` high enough to keep them. Each checkpoint's moving average takes its place in the
run's exported pipeline, and is measured as `diffdistill quickstart` measures. Prints JSON; with --out FOLDER writes
kd_curve.json and kd_curve.png there too.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from safetensors.torch import load_file

from diffdistill.cli.paths import find
from diffdistill.comparison.ruler import Ruler
from diffdistill.files import write_json_atomic
from diffdistill.models.teacher import load_teacher


def curve(run: Path, n: int, seed: int) -> list[dict[str, Any]]:
    recipe = yaml.safe_load((run / "config.yaml").read_text())["method"]["init_args"]
    untrained = load_teacher(find(recipe["teacher"]["source"])).backbone.inner.state_dict()
    student, bench = load_teacher(str(run / "export")), Ruler(n, seed)
    weights = {0: lambda: untrained}
    for folder in sorted(run.glob("checkpoint-*")):
        weights[int(folder.name.removeprefix("checkpoint-"))] = partial(_average, folder)
    rows = []
    for images, load in weights.items():
        student.backbone.inner.load_state_dict(load())
        rows.append({"images": images, **bench.measure(student, 1, 1.0)})
    return rows


def _average(checkpoint: Path) -> dict[str, Any]:
    return {name.removeprefix("inner."): value for name, value in load_file(checkpoint / "ema.safetensors").items()}


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.errorbar([r["images"] for r in rows], [r["kd"] for r in rows], [r["kd_se"] for r in rows], marker="o")
    axes.set_xlabel("images seen")
    axes.set_ylabel(f"KD, MobileNetV2, n = {rows[0]['n']}")
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    found = curve(o.run, o.n, o.seed)
    print(json.dumps(found, indent=1))
    if o.out:
        o.out.mkdir(parents=True, exist_ok=True)
        write_json_atomic(o.out / "kd_curve.json", {"rows": found})
        _plot(found, o.out / "kd_curve.png")
