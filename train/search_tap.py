"""A short search for the tap of self-conditioning: the block with the lowest training loss.

    python train/search_tap.py configs/fashion_teacher.yaml --samples 12800 --out runs/taps
    python train/search_tap.py configs/fashion_teacher.yaml --taps mid up.0 --seeds 0 1 --out runs/taps

Every tap is trained from the same start on the same images, noise and times, so differences of the loss are small but
not noisy. What is printed is the mean loss of the last half of each run, without self-conditioning and at each tap.
With several seeds, the differences to the run without it have a standard error. A run of the same recipe that is there
is kept. The contrastive term is left out.
Other options are those of `diffdistill train`, such as --method.data.source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from pathlib import Path

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.main import guard
from diffdistill.cli.train import build_method, parse
from diffdistill.cli.train import main as train
from diffdistill.errors import UserError
from diffdistill.files import write_json_atomic
from diffdistill.methods import LatentDiffusion

NONE = "none"
LOSS = "loss.json"


def main() -> None:
    """Train each tap, and print the losses as JSON."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a recipe of LatentDiffusion")
    parser.add_argument("--taps", nargs="+", help="blocks; by default all but the last one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=12800, help="images of a run")
    parser.add_argument("--out", type=Path, required=True, help="a folder; each run has one in it")
    o, rest = parser.parse_known_args()
    taps = o.taps or _all_taps([o.config, *rest])
    losses: dict[str, list[float]] = {}
    for tap in [NONE, *(tap for tap in taps if tap != NONE)]:
        for seed in o.seeds:
            run = o.out / f"{tap}-{seed}"
            chosen = ["--method.network.self_conditioning.tap", "null" if tap == NONE else tap]
            length = ["--training.samples", str(o.samples), "--training.seed", str(seed)]
            cheap = ["--method.self_distillation.weight", "0", "--training.validate_every", "0"]
            cheap += ["--training.log_every", "1"]
            argv = [o.config, *rest, *chosen, *length, *cheap]
            key = hashlib.sha256(json.dumps([argv, Path(o.config).read_text()]).encode()).hexdigest()
            loss = _stored(run, key)
            if loss is None:
                train([*argv, "--overwrite", "true", "--output_dir", str(run)])
                loss = _loss(run)
                write_json_atomic(run / LOSS, {"key": key, "loss": loss})
            losses.setdefault(tap, []).append(loss)
    print(json.dumps({tap: _said(values, losses[NONE]) for tap, values in losses.items()}, indent=1))


def _all_taps(argv: list[str]) -> list[str]:
    method = build_method(parse(argv)[1])
    if not isinstance(method, LatentDiffusion):
        raise UserError(f"{argv[0]} is a recipe of {type(method).__name__}; the search is for LatentDiffusion")
    from diffdistill.models.families.unet import unet_blocks

    return list(unet_blocks(method.networks["model"].inner))[:-1]


def _stored(run: Path, key: str) -> float | None:
    """The loss of a run of the same recipe that is there already."""
    try:
        found = json.loads((run / LOSS).read_text())
        return float(found["loss"]) if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _loss(run: Path) -> float:
    """The mean loss of the last half of a run's steps."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    values = [line["teacher/loss"] for line in lines if "teacher/loss" in line]
    if not values:
        raise UserError(f"{run} logged no loss; --samples is too small")
    return statistics.fmean(values[len(values) // 2 :])


def _said(values: list[float], without: list[float]) -> dict[str, float]:
    differences = [a - b for a, b in zip(values, without, strict=True)]
    found = {"loss": statistics.fmean(values), "difference": statistics.fmean(differences)}
    if len(values) > 1:
        found["standard_error"] = statistics.stdev(differences) / math.sqrt(len(values))
    return {key: round(value, 6) for key, value in found.items()}


if __name__ == "__main__":
    sys.exit(guard(main))
