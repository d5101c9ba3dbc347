"""A short search for the tap of self-conditioning: the block with the lowest training loss.

    python train/search_tap.py configs/fashion_teacher.yaml --samples 12800 --out runs/taps
    python train/search_tap.py configs/fashion_teacher.yaml --taps mid up.0 --seeds 0 1 --out runs/taps

Every tap is trained from the same start on the same images, noise and times, so differences of the loss are small but
not noisy. What is printed is the mean loss of the last half of each run, without self-conditioning and at each tap.
With several seeds, the differences to the run without it have a standard error. A run of the same recipe that is there
is kept. OUT/taps.json has what is printed. The contrastive term is left out. A search of a few steps tells nothing,
because the projection starts at zero.
Other options are those of `diffdistill train`, such as --method.data.source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from diffdistill.cli.arguments import OneLineParser
from diffdistill.cli.main import guard
from diffdistill.cli.train import build_method, parse
from diffdistill.cli.train import main as train
from diffdistill.errors import UserError
from diffdistill.files import write_json_atomic
from diffdistill.methods import LatentDiffusion
from diffdistill.models.families.unet import unet_blocks

NONE = "none"
LOSS = "loss.json"


def main() -> None:
    """Train each tap, and print the losses as JSON."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a recipe of LatentDiffusion")
    parser.add_argument("--taps", nargs="+", help="blocks (default: all but the last one)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (default: 0)")
    parser.add_argument("--samples", type=int, default=12800, help="images of a run (default: 12800)")
    parser.add_argument("--out", type=Path, required=True, help="a folder; each run has one in it")
    o, rest = parser.parse_known_args()
    method = build_method(parse([o.config, *rest])[1])
    if not isinstance(method, LatentDiffusion):
        raise UserError(f"{o.config} is a recipe of {type(method).__name__}; the search is for LatentDiffusion")
    blocks = list(unet_blocks(method.networks["model"].inner))
    taps = list(dict.fromkeys(o.taps or blocks[:-1]))
    if unknown := [tap for tap in taps if tap not in blocks[:-1]]:
        raise UserError(f"--taps has {unknown[0]!r}; blocks that others run after are {', '.join(blocks[:-1])}")
    if o.samples < 1 or not o.seeds:
        raise UserError(f"--samples is {o.samples} and --seeds {o.seeds}; there must be one or more of each")
    content, seeds = dict(method.content), list(dict.fromkeys(o.seeds))
    losses = {tap: [_trained(o, rest, content, tap, seed) for seed in seeds] for tap in [NONE, *taps]}
    found: dict[str, Any] = {tap: _said(values, losses[NONE]) for tap, values in losses.items()}
    best = min(losses, key=lambda tap: statistics.fmean(losses[tap]))
    report = {"lowest": best, "seeds": len(seeds), "taps": found}
    write_json_atomic(o.out / "taps.json", report)
    print(json.dumps(report, indent=1))
    if best == NONE or "standard_error" not in found[best]:
        why = "no tap has a lower loss than none" if best == NONE else "one seed gives no standard error; see --seeds"
        print(f"note: {why}", file=sys.stderr)


def _trained(o: argparse.Namespace, rest: list[str], content: dict[str, str], tap: str, seed: int) -> float:
    """The loss of a run, which is trained unless the same one is there."""
    run = o.out / f"{tap}-{seed}"
    chosen = ["--method.network.self_conditioning.tap", "null" if tap == NONE else tap]
    length = ["--training.samples", str(o.samples), "--training.seed", str(seed)]
    cheap = ["--method.self_distillation.weight", "0", "--training.validate_every", "0", "--training.log_every", "1"]
    argv = [o.config, *rest, *chosen, *length, *cheap]
    made_from = json.dumps([argv, Path(o.config).read_text(encoding="utf-8"), content], sort_keys=True)
    key = hashlib.sha256(made_from.encode()).hexdigest()
    try:
        found = json.loads((run / LOSS).read_text(encoding="utf-8"))
        there, loss = found["key"], found["loss"]
    except (OSError, ValueError, KeyError, TypeError):
        there, loss = None, None
    if there == key and isinstance(loss, float):
        return loss
    if there != key and run.is_dir() and any(run.iterdir()):
        raise UserError(f"{run} holds a run of another recipe, length or data; take another --out")
    write_json_atomic(run / LOSS, {"key": key, "loss": None})  # a run that is interrupted is begun anew
    with redirect_stdout(sys.stderr):
        train([*argv, "--overwrite", "true", "--output_dir", str(run)])
    loss = _loss(run)
    write_json_atomic(run / LOSS, {"key": key, "loss": loss})
    return loss


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
