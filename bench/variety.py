"""Variety within a caption: the mean distance between features of two images of one on MobileNetV2.

    python bench/variety.py before=runs/a/export after=runs/b/export --steps 1 4 --seeds 0 1 2

A seed draws 32 captions of the emoji set and the noise of 8 images of each. Prints JSON: by model and steps, the mean
over seeds and their deviation.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from diffdistill.cli.paths import find
from diffdistill.data.emoji import load_emoji
from diffdistill.evaluation import MobileNetFeatures, diversity
from diffdistill.models.generate import generate, load_generator

CAPTIONS, PICTURES = 32, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    o = parser.parse_args()
    captions, extract = load_emoji(find("assets/emoji")).captions, MobileNetFeatures()
    found: dict[str, dict[str, list[float]]] = {}
    for name, path in (model.split("=", 1) for model in o.models):
        model, by_steps = load_generator(find(path)), dict[str, list[float]]()
        for steps in o.steps:
            values = []
            for seed in o.seeds:
                order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
                prompts = [captions[i] for i in order[:CAPTIONS] for _ in range(PICTURES)]
                images = torch.cat(list(generate(model, prompts, steps, o.guidance, seed, 64)))
                values.append(diversity(extract(images), prompts))
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            by_steps[str(steps)] = [round(statistics.fmean(values), 2), round(deviation, 2)]
        found[name] = by_steps
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
