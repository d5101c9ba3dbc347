"""Which residual teaches a text-to-3D generator best: score distillation four ways, on the same prompts and prior.

    python bench/text_to_3d.py --prior assets/text3d_prior --views runs/things \
        --judge runs/things/judge.safetensors --out runs/residuals

Each arm is one residual with its guidance, range of times and shift, trained with each seed from the same generator for
the same number of steps. A seed sets the generator's first weights, the order of the prompts, the rings and the noise.
Arms that are done are kept in OUT, by all they were made from. Each run is a process of its own, whose largest memory
is read; seconds are of its processor, without evaluation.

The table has the mean of the seeds and, in brackets, the worst seed. "held out" are prompts that the generator, or the
prior too, was not trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from diffdistill.cli.main import guard
from diffdistill.data.prompts import read_prompts
from diffdistill.errors import UserError
from diffdistill.files import write_atomic, write_json_atomic
from diffdistill.methods import OptimizerSettings
from diffdistill.methods.settings import JudgedTimes
from diffdistill.methods.text_to_3d import TextTo3D
from diffdistill.methods.text_to_3d_settings import Judging, Regularisers, Rendering
from diffdistill.text3d.evaluation.evaluation import Evaluation
from diffdistill.text3d.evaluation.fingerprints import digest_of_model
from diffdistill.text3d.evaluation.record import record_of
from diffdistill.text3d.evaluation.splits import split_of_views
from diffdistill.text3d.judge_network import load_judge
from diffdistill.text3d.measures import QUICK, Ruler
from diffdistill.text3d.model import load_model
from diffdistill.text3d.prior import digest_of, load_prior
from diffdistill.text3d.regularisers import LinearSchedule
from diffdistill.text3d.things.views import load_views
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

HIGH, WIDE, PAPER = (0.6, 0.98, 0.3, 0.7), (0.02, 0.98, 0.02, 0.5), (0.5, 0.98, 0.02, 0.5)
RENDERING, TERMS = Rendering(), Regularisers(eikonal=LinearSchedule.constant(0.03))
RATES = {"hyper_small": 5e-3, "triplane_small": 1e-3, "voxel_conv_small": 4e-3}


@dataclass(frozen=True)
class Arm:
    """How views are judged: first and last guidance, first and last range of times, the shift of ASD and its kind."""

    residual: Literal["sds", "csd", "asd", "vsd"]
    guidance: tuple[float, float] = (3.0, 1.0)
    times: tuple[float, float, float, float] = HIGH
    eta: float = 0.1
    fixed: bool = False
    finish: Literal["sds", "csd"] | None = None
    generator: str = "hyper_small"


ARMS: dict[str, Arm] = {
    "sds": Arm("sds"),
    "csd": Arm("csd"),
    "asd": Arm("asd"),
    "vsd": Arm("vsd", (1.5, 1.0)),
    "asd, then sds": Arm("asd", finish="sds"),
    "sds, no guidance": Arm("sds", (1.0, 1.0)),
    "sds, guidance 7.5": Arm("sds", (7.5, 7.5)),
    "sds, all times": Arm("sds", times=WIDE),
    "vsd, all times": Arm("vsd", (1.5, 1.0), WIDE),
    "csd, all times": Arm("csd", times=WIDE),
    "asd, no shift": Arm("asd", eta=0.0),
    "asd, fixed shift": Arm("asd", fixed=True),
    "asd, shift to .2": Arm("asd", eta=0.2),
    "asd, guidance 1.1": Arm("asd", (1.1, 1.1)),
    "asd, guidance 7.5": Arm("asd", (7.5, 7.5)),
    "asd, all times": Arm("asd", times=WIDE),
    "asd as published": Arm("asd", (7.5, 7.5), PAPER),
    "csd, then sds": Arm("csd", finish="sds"),
    "triplane": Arm("sds", generator="triplane_small"),
    "voxel_conv": Arm("sds", generator="voxel_conv_small"),
}


def main() -> None:
    """Train and measure what is missing, and write table.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", required=True, help="folder of the multi-view prior")
    parser.add_argument("--views", required=True, help="true renders of the same things")
    parser.add_argument("--judge", required=True, type=Path, help="file of the judge, from `diffdistill text3d eval`")
    parser.add_argument("--prompts", default="configs/prompts/things.txt", help="file of the trained prompts")
    parser.add_argument("--out", required=True, type=Path, help="folder of the results")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=1000, help="of 8 prompts each")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.worker:
        print(json.dumps(one(ARMS[o.arms[0]], o.seeds[0], o)))
        return
    o.out.mkdir(parents=True, exist_ok=True)
    rows = {arm: [_kept(arm, seed, o) for seed in o.seeds] for arm in o.arms}
    write_atomic(o.out / "table.md", table(rows).encode())
    print(table(rows))


def _digest(arm: str, seed: int, o: argparse.Namespace) -> str:
    prior, prompts = digest_of(load_prior(o.prior)), Path(o.prompts).read_text()
    files = [o.judge, *sorted(Path(o.views).glob("*.npz"))]
    ruler = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    everything = (asdict(ARMS[arm]), RATES, RENDERING, TERMS, seed, o.steps, prior, prompts, ruler, QUICK)
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:10]


def _kept(arm: str, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    name = f"{arm.replace(', ', '-').replace(' ', '_')}-{seed}-{_digest(arm, seed, o)}"
    file = o.out / f"{name}.json"
    if not file.is_file():
        command = [
            sys.executable,
            __file__,
            "--worker",
            "--prior",
            o.prior,
            "--views",
            o.views,
            "--judge",
            str(o.judge),
        ]
        command += ["--prompts", o.prompts, "--out", str(o.out / name), "--arms", arm, "--seeds", str(seed)]
        done = subprocess.run([*command, "--steps", str(o.steps)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"the run {name} ended with {done.returncode}")
        write_json_atomic(file, json.loads(done.stdout.splitlines()[-1]))
        print(name, json.dumps(json.loads(file.read_text())["all"]), file=sys.stderr, flush=True)
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def one(arm: Arm, seed: int, o: argparse.Namespace) -> dict[str, Any]:
    """Train an arm with a seed, and measure it."""
    shutil.rmtree(o.out, ignore_errors=True)
    (o.out / "run").mkdir(parents=True)
    torch.manual_seed(seed)
    guidance = LinearSchedule(0.0, *arm.guidance, 1.0)
    times = JudgedTimes(*arm.times)
    judging = Judging(arm.residual, times=times, guidance_scale=guidance, eta=arm.eta, finish=arm.finish)
    rate = OptimizerSettings(RATES[arm.generator], (0.0, 0.99))
    method = TextTo3D(o.prior, o.prompts, arm.generator, judging, RENDERING, TERMS, rate)
    if arm.fixed:
        _fix_shift(method)
    samples = 8 * o.steps
    settings = TrainingSettings(
        samples, batch_size=8, seed=seed, mixed_precision="bf16", lr_schedule="cosine", warmup_samples=samples // 20,
        ema_decay=0.99, log_every=20, validate_every=samples, checkpoint_every=samples,
    )  # fmt: skip
    start = time.process_time()
    folder = Trainer(method, settings, o.out / "run").fit()
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    views = load_views(o.views, size=32)
    split = split_of_views(views, read_prompts(o.prompts))
    evaluation = Evaluation(
        load_model(folder), digest_of_model(folder), Ruler(views, load_judge(o.judge), QUICK), split,
        o.out / "measured", ("kd",),
    )  # fmt: skip
    splits = record_of(evaluation)["splits"]
    return {**splits, "seconds_a_step": seconds / o.steps, "memory_mb": memory}


def _fix_shift(method: TextTo3D) -> None:
    """Let ASD's later time be as late as it can be, in place of a random one."""
    schedule: Any = method.judge.teacher.schedule
    later = schedule.later
    schedule.later = lambda t, u, eta, low: later(t, torch.ones_like(u), eta, low)


def _held_out(row: dict[str, Any], key: str) -> float:
    parts = [row[name] for name in ("composed", "unseen") if name in row]
    return float(sum(part[key] * part["prompts"] for part in parts) / sum(part["prompts"] for part in parts))


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table: a row for each arm."""
    lines = [
        "| residual | R@1 trained | R@1 held out | PSNR, dB | IoU | worst thing's IoU | render-KD | empty or diverged "
        "| s a step | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, seeds in rows.items():
        cells = [arm]
        columns: list[tuple[list[float], str, bool]] = [
            ([s["trained"]["recall_at_1"] for s in seeds], ".2f", False),
            ([_held_out(s, "recall_at_1") for s in seeds], ".2f", False),
            ([s["all"]["psnr_db"] for s in seeds], ".1f", False),
            ([s["all"]["iou"] for s in seeds], ".2f", False),
            ([s["all"]["worst_thing_value"] for s in seeds], ".2f", False),
            ([s["all"]["render_kd"] for s in seeds], ".2f", True),
            ([s["all"]["share_empty"] + s["all"]["share_diverged"] for s in seeds], ".2f", True),
        ]
        for values, how, low in columns:
            cells.append(f"{statistics.mean(values):{how}} ({max(values) if low else min(values):{how}})")
        cells += [
            f"{statistics.mean(s['seconds_a_step'] for s in seeds):.2f}",
            f"{max(s['memory_mb'] for s in seeds):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(guard(main))
