"""KD against steps of any-step models, each at its best guidance, and their ratios to the first one.

    python bench/kd_against_steps.py flow=runs/c3_flow/export self_e=runs/c3_self_e/export \\
        --plot docs/images/self_e.png --out runs/c3

Measures by `diffdistill eval sweep` (resumed where interrupted; OUT has its sweep.json for `eval report`), prints JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sweep_rows import best_by_steps, read_rows


def plot(found: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """KD and its deviation over draws, against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, by_steps in found.items():
        steps = sorted(by_steps)
        kd = [by_steps[n]["mean"]["kd"] for n in steps]
        sd = [by_steps[n]["sd"]["kd"] or 0.0 for n in steps]  # None of one draw
        axis.errorbar(steps, kd, sd, marker="o", markersize=4, capsize=2, label=name)
    axis.set_xscale("log", base=2)
    ticks = sorted({n for by_steps in found.values() for n in by_steps})
    axis.set_xticks(ticks, [str(n) for n in ticks])
    axis.set_xlabel("steps")
    axis.set_ylabel("KD, MobileNetV2")
    axis.set_ylim(bottom=0)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH", help="the first is what the others are compared with")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 25, 50])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--pictures", type=int, default=256, help="a cell and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of prompts, reference, noise")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    if not all("=" in model for model in o.models):
        parser.error("models are given as NAME=PATH")
    command = [sys.executable, "eval/sweep.py", "--models", *o.models, "--out", str(o.out), "--agreement", "none"]
    for option in ("steps", "guidance", "pictures", "seeds"):
        value = getattr(o, option)
        command += [f"--{option}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    subprocess.run(command, check=True, stdout=sys.stderr)
    rows = read_rows(o.out / "sweep.json")
    found = {name: best_by_steps(rows, name) for name in (model.partition("=")[0] for model in o.models)}
    if o.plot:
        plot(found, o.plot)
    first = next(iter(found.values()))
    print(
        json.dumps(
            [
                {
                    "model": name,
                    "steps": n,
                    "guidance": row["guidance"],
                    "kd": round(row["mean"]["kd"], 4),
                    "sd": row["sd"]["kd"] and round(row["sd"]["kd"], 4),
                    "fd": round(row["mean"]["fd"], 1),
                    "recall": round(row["mean"]["recall"], 3),
                    "ratio": round(row["mean"]["kd"] / first[n]["mean"]["kd"], 3),
                }
                for name, by_steps in found.items()
                for n, row in sorted(by_steps.items())
            ],
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
