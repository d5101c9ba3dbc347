"""What self-conditioning and the contrastive term change: quality, variety, features and cost of runs on Fashion-MNIST.

    python bench/ddae.py measure runs/ddae/plain-0 runs/ddae/self-0      # each run's measured.json
    python bench/ddae.py table runs/ddae --arms plain self contrast both # means and deviations over seeds
    python bench/ddae.py losses runs/ddae/plain-0 runs/ddae/self-0       # differences of training losses, by quarters
    python bench/ddae.py cost                                            # step times of the arms, as ratios in one run

A run ARM-SEED is of configs/fashion_teacher.yaml or configs/fashion_swiftbrush.yaml. What is measured of its product:

    kd       kernel distance on MobileNetV2 of 1,000 images, 100 of each caption, to 2,000 test images
    variety  mean distance within a caption on the same features, over that of the test images
    features the map of `diffdistill eval probe`, on 4,000 training and 2,000 test images

A teacher is sampled in 25 steps without guidance, and a student in one. A run is measured once.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffdistill.comparison.probe_map import ProbeMap, ProbeSettings
from diffdistill.comparison.probed import open_probed
from diffdistill.data.captioned import CaptionedData, load_captioned
from diffdistill.data.labelled import load_labelled
from diffdistill.evaluation import MobileNetFeatures, diversity
from diffdistill.evaluation.quick import quick_numbers
from diffdistill.files import write_json_atomic
from diffdistill.models.generate import generate, load_generator

DATA = Path("runs/fashion_mnist")
OF_CLASS, REFERENCE, STEPS = 100, 2000, 25
NOISE = (0.05, 0.1, 0.4)
AT = ("mid", 0.1)
MEASURED = "measured.json"


def measure(run: Path, features: bool = True) -> None:
    """Write what the run's measured.json lacks, with a map beside it unless `features` is false."""
    file = run / MEASURED
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    extract = MobileNetFeatures()
    if "kd" not in found:
        found.update(_quality(run, extract))
        write_json_atomic(file, found)
    if features and "cells" not in found:
        data = load_labelled(*(str(DATA / name) for name in ("train.npz", "train.csv", "test.npz", "test.csv")))
        target = (extract, f"{extract.name}, {extract.weights_sha256[:16]}")
        probes = ProbeMap(data.some(4000, 2000), ProbeSettings(NOISE), run / "probe", {"images": str(DATA)}, target)
        (model,) = probes.run({run.name: partial(open_probed, str(run / "export"))})["models"]
        write_json_atomic(file, {**found, "cells": model["cells"]})


def _quality(run: Path, extract: MobileNetFeatures) -> dict[str, Any]:
    torch.manual_seed(0)
    real = load_captioned(CaptionedData(str(DATA / "test.npz"), str(DATA / "test.csv")))
    rows = [i * len(real) // REFERENCE for i in range(REFERENCE)]
    reference = extract(real.images[rows])
    names = (DATA / "names.txt").read_text().split("\n")[:-1]
    prompts = [name for name in names for _ in range(OF_CLASS)]
    steps = STEPS if "LatentDiffusion" in (run / "config.yaml").read_text() else 1
    images = torch.cat(list(generate(load_generator(run / "export", steps), prompts, steps, 1.0, 0, 100)))
    features = extract(images)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(log) if "cpu_seconds" in line)
    return {
        **quick_numbers(features, reference),
        "steps": steps,
        "variety": diversity(features, prompts) / diversity(reference, [real.names[i] for i in rows]),
        "cpu_seconds": last["cpu_seconds"],
    }


def table(folder: Path, arms: list[str]) -> None:
    """Print the table, and each arm's map of the linear probe as a mean over seeds."""
    for arm in arms:
        runs = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{arm}-[0-9]/{MEASURED}"))]
        if not runs:
            continue
        columns = {key: [run[key] for run in runs] for key in ("kd", "fd", "variety", "cpu_seconds")}
        cells = [(cell["tap"], cell["noise_ratio"]) for cell in runs[0].get("cells", []) if "linear" in cell]
        for key in ("linear", "knn", "gap", "uniformity") if cells else ():
            columns[f"{key} at {AT[0]}, {AT[1]:g}"] = [_cell(run, AT)[key] for run in runs]
        for key in ("linear", "knn", "gap") if cells else ():
            by_cell = {cell: [_cell(run, cell)[key] for run in runs] for cell in cells}
            choose = min if key == "gap" else max
            best = choose(by_cell, key=lambda cell: statistics.fmean(by_cell[cell]))
            columns[f"best {key}, {best[0]}, {best[1]:g}"] = by_cell[best]
        print(arm, len(runs), "runs:", "; ".join(f"{key} {_spread(values)}" for key, values in columns.items()))
        for tap in dict.fromkeys(cell[0] for cell in cells):
            values = [statistics.fmean(_cell(run, cell)["linear"] for run in runs) for cell in cells if cell[0] == tap]
            print(f"    {tap:7}", " ".join(f"{100 * value:5.1f}" for value in values))


def _cell(run: dict[str, Any], cell: tuple[str, float]) -> dict[str, Any]:
    return next(each for each in run["cells"] if (each["tap"], each["noise_ratio"]) == cell)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def losses(first: Path, second: Path) -> None:
    """Print the mean difference of two runs' diffusion losses in each quarter, and its standard error over steps."""
    kept = []
    for run in (first, second):
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        steps = [line for line in log if "teacher/loss" in line]
        kept.append({line["samples"]: line.get("teacher/diffusion", line["teacher/loss"]) for line in steps})
    both = sorted(kept[0].keys() & kept[1].keys())
    differences = [kept[1][samples] - kept[0][samples] for samples in both]
    for i in range(4):
        part = differences[i * len(both) // 4 : (i + 1) * len(both) // 4]
        print(f"quarter {i + 1}: {statistics.fmean(part):+.4f} ± {statistics.stdev(part) / len(part) ** 0.5:.4f}")


def cost(rounds: int) -> None:
    """Step times, forward and backward, of the embedded teacher and of the same network self-conditioned."""
    from diffdistill.models.self_conditioned import add_self_conditioning
    from diffdistill.models.self_conditioning import SelfConditioning
    from diffdistill.models.teacher import load_teacher

    plain = load_teacher("assets/teacher").backbone.inner.requires_grad_(True).train()
    made = add_self_conditioning(copy.deepcopy(plain), SelfConditioning("mid"))
    x, text = torch.randn(64, 8, 8, 8), torch.randn(64, 77, plain.config.cross_attention_dim)
    times = torch.randint(0, 1000, (64,))

    def step(network: Any) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(x, times, encoder_hidden_states=text).sample.square().mean()
        loss.backward()
        network.zero_grad()
        return time.perf_counter() - start

    def forward(network: Any) -> float:
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(x, times, encoder_hidden_states=text)
        return time.perf_counter() - start

    for name, run in (("forward and backward", step), ("forward", forward)):
        for network in (plain, made):
            run(network)
        pairs = [(run(plain), run(made)) if i % 2 else (run(made), run(plain))[::-1] for i in range(rounds)]
        ratios = [b / a for a, b in pairs]
        ours, theirs = (statistics.median(pair[k] for pair in pairs) for k in (1, 0))
        print(f"{name}: {ours:.4f} s and {theirs:.4f} s, ratio of medians {ours / theirs:.4f}, "
              f"median of ratios {statistics.median(ratios):.4f}")  # fmt: skip
    counts = [sum(p.numel() for p in network.parameters()) for network in (plain, made)]
    print(f"parameters {counts[0]:,} and {counts[1]:,}, ratio {counts[1] / counts[0]:.4f}")


def main() -> None:
    """Measure, print or time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table", "losses", "cost"))
    parser.add_argument("folders", nargs="*", type=Path, help="runs, or the folder that holds them")
    parser.add_argument("--arms", nargs="+", default=["plain", "self", "contrast", "both"])
    parser.add_argument("--no_features", action="store_true", help="measure: images alone, without the map")
    parser.add_argument("--rounds", type=int, default=61)
    o = parser.parse_args()
    if o.what == "measure":
        for run in o.folders:
            measure(run, not o.no_features)
    elif o.what == "losses":
        losses(*o.folders)
    elif o.what == "table":
        table(o.folders[0], o.arms)
    else:
        cost(o.rounds)


if __name__ == "__main__":
    main()
