"""Remedies against lost variety, raced on one budget: each alone beside plain SwiftBrush, and the best together.

    python bench/remedies.py --rows base regression     # train, measure, and print the table
    python bench/remedies.py --cost                     # seconds and memory of a training step, over those of the base

A row that is done is not made again. A row is a config and options beside it. Most are configs/emoji_quickstart.yaml
without its pairs and critic. All rows see the same number of images (12,800); rows that start from another student
spend half of them on that one. They are measured by `diffdistill eval compare`, against 50 guided steps of the teacher.
A row trains 4 to 15 CPU minutes, and is measured in 3. The teacher is measured once, in 8 minutes. `--cost` takes half
a minute a row: each is a process of its own, and the base is timed again beside it, so that other work matters less.
It is the cost of a judged step, after the start from another student or from regression alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from leaderboard import PLAIN
from recipe_runs import COLUMNS, cells, compared, train

PAIRS = {"method.pairs.count": "10000", "method.pairs.steps": "8", "method.pairs.guidance_scale": "2"}
CRITIC = {**PAIRS, "method.adversary.of_teacher": "true", "method.adversary.weight": "3e-2"}
REAL = {
    "method.adversary.data.source": "assets/emoji",
    "method.adversary.weight": "0.1",
    "method.adversary.critic_weight": "0.03",
}
ALONE = {"method.regression.alone": "200"}
REGRESSION = {**PAIRS, **ALONE, "method.regression.weight": "0.25"}
QUICK = "emoji_quickstart"
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "base": (QUICK, {}),
    "noise at the last time": (QUICK, {"method.noise_ratio": "null"}),
    "three updates of the fake score": (QUICK, {"method.fake.updates": "3"}),
    "regression at the start": (QUICK, {**PAIRS, **ALONE}),
    "regression": (QUICK, REGRESSION),
    "regression on latents and features": (
        QUICK,
        {**REGRESSION, "method.regression.weight": "0.125", "method.regression.features.weight": "1"},
    ),
    "critic of the teacher's samples": (QUICK, CRITIC),
    "Jensen-Shannon": (QUICK, {**CRITIC, "method.adversary.divergence": "jensen_shannon"}),
    "forward KL": (QUICK, {**CRITIC, "method.adversary.divergence": "forward_kl"}),
    "critic of real images": (QUICK, REAL),
    "regression and critic of real images": (QUICK, {**REGRESSION, **REAL}),
    "start from BOOT": (QUICK, {}),
    "start from progressive": (QUICK, {}),
    "SiD": ("emoji_sid", {}),
    "two steps": ("emoji_dmd2", {"method.fake.updates": "1"}),
}
FIRST = {  # what half of the images of a row are spent on
    "start from BOOT": ("emoji_boot", {"method.noise_ratio": "2.5"}),
    "start from progressive": ("emoji_progressive", {}),
}
CHILD = "--one"


def recipe(row: str) -> tuple[str, dict[str, str]]:
    """The config of a row, and its options of `diffdistill train`."""
    config, named = ROWS[row]
    plain = PLAIN if config == QUICK else {}
    return f"configs/{config}.yaml", {**plain, **named, "training.max_minutes": "0"}


def folder(row: str, seed: int, images: int, out: Path) -> Path:
    return out / f"{row.replace(' ', '_').replace(',', '')}-{images}-s{seed}"


def first_run(row: str, o: argparse.Namespace) -> Path:
    """The folder of the run from which a row of `FIRST` starts."""
    return folder(f"{row}, first", o.seed, o.images // 2, o.out)


def train_row(row: str, o: argparse.Namespace) -> None:
    config, options = recipe(row)
    more = {"training.samples": str(o.images), "training.seed": str(o.seed), "training.validate_every": "6400"}
    if row in FIRST:
        more["training.samples"] = str(o.images // 2)
        name, before = FIRST[row]
        train(first_run(row, o), f"configs/{name}.yaml", {**before, **more})
        options["method.start"] = str(first_run(row, o) / "export")
    train(folder(row, o.seed, o.images, o.out), config, {**options, **more})


def cpu_seconds(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    seconds: float = max(line.get("cpu_seconds", 0) for line in lines)
    return seconds


def measure(rows: list[str], o: argparse.Namespace) -> list[dict[str, Any]]:
    """The ratios of each row, as `eval compare` prints them, and its CPU seconds of training."""
    found = []
    for row in rows:
        run = folder(row, o.seed, o.images, o.out)
        steps = "2" if row == "two steps" else "1"
        [numbers] = compared({"student": run}, o.out / "compared", "--steps", steps, "--pictures", "512")
        seconds = cpu_seconds(run) + (cpu_seconds(first_run(row, o)) if row in FIRST else 0)
        found.append({**numbers, "name": row, "cpu_seconds": round(seconds)})
    return found


def table(found: list[dict[str, Any]]) -> str:
    lines = [f"| | {COLUMNS} | CPU seconds |", "|---|---|---|---|---|"]
    lines += [f"| {row['name']} | {' | '.join(cells(row))} | {row['cpu_seconds']:,} |" for row in found]
    return "\n".join(lines)


def one(row: str, rounds: int) -> dict[str, float]:
    """Seconds of a step late in a run, and the largest memory of this process in MiB."""
    from diffdistill.cli.train import build_method, parse
    from diffdistill.training.loop import Trainer
    from diffdistill.training.settings import TrainingSettings

    few = {"method.pairs.count": "64"} if "method.pairs.count" in ROWS[row][1] else {}
    config, options = recipe(row)
    _, namespace = parse([config, *(f"--{key}={value}" for key, value in {**options, **few}.items())])
    settings = {**vars(namespace.training), "samples": 1000 * 32, "validate_every": 0}
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(build_method(namespace), TrainingSettings(**settings), Path(place))
    seconds = []
    for k in range(rounds + 2):
        trainer.clock.samples, trainer.clock.step = 900 * 32, 900
        started = time.perf_counter()
        trainer.train_step()
        if k > 1:
            seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)
    return {"seconds": statistics.median(seconds), "mib": peak}


def cost(rows: list[str], rounds: int) -> None:
    """Print the cost of each row and of the base beside it, a line a row."""
    for row in rows:
        measured = {}
        for name in ("base", row):
            argv = [sys.executable, __file__, CHILD, name, "--rounds", str(rounds)]
            done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
            measured[name] = json.loads(done.stdout.splitlines()[-1])
        own, base = measured[row], measured["base"]
        ratio = round(own["seconds"] / base["seconds"], 2)
        print(
            json.dumps({row: {"seconds": round(own["seconds"], 3), "ratio": ratio, "mib": round(own["mib"])}}),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--images", type=int, default=12_800, help="seen by each row; default 12800")
    parser.add_argument("--out", type=Path, default=Path("runs/remedies"))
    parser.add_argument("--cost", action="store_true", help="measure seconds and memory of a step instead")
    parser.add_argument("--rounds", type=int, default=15, help="steps that --cost times")
    parser.add_argument("--train_only", action="store_true", help="measure nothing")
    parser.add_argument(CHILD, choices=ROWS, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.one:
        print(json.dumps(one(o.one, o.rounds)))
    elif o.cost:
        cost(o.rows, o.rounds)
    else:
        for row in o.rows:
            train_row(row, o)
        if not o.train_only:
            print(table(measure(o.rows, o)))


if __name__ == "__main__":
    main()
