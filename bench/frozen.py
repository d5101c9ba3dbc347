"""Numbers that a change of the code's shape may not change: recorded by one version, compared by another.

    python bench/frozen.py --write before.json       # with the version before
    python bench/frozen.py --compare before.json     # with the one after; exit code 1 and the names where they differ

    train      every recipe for the emoji set, two steps on a small captioned set: each loss and gradient norm
    generate   the shipped teacher and student: a hash of their images
    eval       distances under every protocol that needs no download, Inception with seeded random weights; pairs

All goes through the commands, so that the script outlives the modules. `--code FOLDER` runs those of another checkout.
On one machine the numbers of two versions are equal to the last bit; `--tolerance` allows for another machine. About
four minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMON = {
    "training.samples": "8", "training.batch_size": "4", "training.log_every": "1", "training.mixed_precision": "no",
    "training.validate_every": "0", "training.checkpoint_every": "0", "training.max_minutes": "0",
    "training.warmup_samples": "0", "training.cpu": "true",
}  # fmt: skip
ON_PICTURES = ("consistency", "self_e", "flow", "mean_flow", "shortcut", "teacher", "autoencoder")
AT_ONCE = {
    "method.fake.warmup": "0", "method.pairs.count": "64", "method.regression.alone": "1",
    "method.health.captions": "0",
}  # fmt: skip
FROM_START = {  # so that what comes late in a run comes in its two steps
    "swiftbrush": {"method.fake.warmup": "0"},
    "quickstart": AT_ONCE, "variety": AT_ONCE, "variety_images": AT_ONCE | {"method.regression.alone": "0"},
    "sid": {"method.fake.warmup": "0"}, "dmd2": {"method.fake.warmup": "0"},
    "diff_instruct": {"method.fake.warmup": "0"},
    "self_e": {"method.span_from": "0", "method.span_share": "0"},
}  # fmt: skip
PROTOCOLS = ("mobilenet-offline", "clean", "tf-legacy", "torchmetrics")


def run(code: Path, folder: Path, script: str, *argv: str) -> str:
    """The standard output of a command of a checkout."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(code),
        "OMP_NUM_THREADS": "1",
        "DIFFDISTILL_CACHE": str(folder / "cache"),
    }
    command = [
        sys.executable,
        "-c",
        f"import sys; from diffdistill.cli.main import main; sys.exit(main({[script, *argv]!r}))",
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(argv)} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def pictures(folder: Path) -> None:
    """A captioned set laid out as assets/emoji, and two folders of images, all seeded."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    (folder / "set").mkdir()
    names = [f"{colour} {thing}" for colour in ("red", "green", "blue", "yellow") for thing in ("apple", "car", "cat")]
    (folder / "set" / "concepts.tsv").write_text("".join(f"{i:x}\t{name}\n" for i, name in enumerate(names)))
    (folder / "set" / "heldout.txt").write_text("\n")
    for style in ("noto", "twemoji"):
        sheet = np.kron(draw.integers(0, 256, (4, 4 * len(names), 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
        Image.fromarray(sheet).save(folder / "set" / f"{style}.webp", lossless=True)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(12):
            pixels = np.kron(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")


def train(code: Path, folder: Path) -> dict[str, Any]:
    found = {}
    for config in sorted((code / "configs").glob("emoji_*.yaml")):
        name = config.stem.removeprefix("emoji_")
        options = {**COMMON, **FROM_START.get(name, {}), "output_dir": str(folder / "runs" / name)}
        if name == "teacher":  # whose recipe starts from runs of its own
            options |= {"method.network.autoencoder": str(code / "assets" / "teacher" / "vae")}
        if name == "variety_images":
            options |= {"method.start": str(code / "assets" / "student")}
        if name in ON_PICTURES:
            options["method.data.source"] = str(folder / "set")
        run(code, folder, "train", str(config), *(f"--{key}={value}" for key, value in options.items()))
        lines = (folder / "runs" / name / "log.jsonl").read_text().splitlines()
        keep = ("/loss", "/grad_norm")
        found[f"train {name}"] = [{k: v for k, v in json.loads(line).items() if k.endswith(keep)} for line in lines]
    return found


def generate(code: Path, folder: Path) -> dict[str, Any]:
    found = {}
    for name, steps, guidance in (("student", 1, 1), ("teacher", 4, 3)):
        out = folder / f"pictures-{name}"
        options = ("--steps", str(steps), "--guidance", str(guidance), "--n", "4", "--out", str(out))
        run(code, folder, "generate", "--model", str(code / "assets" / name), "--prompt", "a red apple", *options)
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(out.glob("*.png"))))
        found[f"generate {name}"] = digest.hexdigest()
    return found


def evaluate(code: Path, folder: Path) -> dict[str, Any]:
    import torch

    weights = folder / "random-inception.pth"
    sys.path.insert(0, str(ROOT))
    from diffdistill.evaluation.features.inception_network import random_state_dict

    torch.save(random_state_dict(0), weights)
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    found = {}
    for protocol in PROTOCOLS:
        own = () if protocol == "mobilenet-offline" else ("--weights", str(weights), "--weights_sha256", sha)
        argv = ("--images", "a", "--reference", "b", "--protocol", protocol, "--metrics", "fd", "kd", "prdc", *own)
        report = json.loads(run(code, folder, "eval", "calc", *argv))
        found[f"calc {protocol}"] = {key: value for key, value in report.items() if isinstance(value, float)}
    report = json.loads(
        run(code, folder, "eval", "pairs", "--images", "a", "--reference", "b", "--metrics", "psnr", "ms_ssim")
    )
    found["pairs"] = {name: report[name]["mean"] for name in ("psnr", "ms_ssim")}
    return found


def differences(then: Any, now: Any, tolerance: float, name: str = "") -> list[str]:
    """Names at which two records differ by more than a share of the value."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*then, *now])
        return [d for key in keys for d in differences(then.get(key), now.get(key), tolerance, f"{name} {key}".strip())]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, tolerance, f"{name} [{i}]")]
    if isinstance(then, float) and isinstance(now, float):
        same = then == now or (math.isnan(then) and math.isnan(now)) or abs(then - now) <= tolerance * abs(then)
        return [] if same else [f"{name}: {then!r}, now {now!r}"]
    return [] if then == now else [f"{name}: {then!r}, now {now!r}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--code", type=Path, default=ROOT, help="checkout whose commands are run; default this one")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share of a value; default 0, to the last bit")
    o = parser.parse_args()
    code = o.code.resolve()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures(folder)
        found = {**train(code, folder), **generate(code, folder), **evaluate(code, folder)}
    if o.write:
        o.write.write_text(json.dumps(found, indent=1) + "\n")
        return
    differ = differences(json.loads(o.compare.read_text()), found, o.tolerance)
    print("\n".join(differ) or f"{len(found)} records are the same")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
