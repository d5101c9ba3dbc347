"""A one-step student against its teacher's many steps: same prompts, same reference, several seeds.

    python bench/compare.py --student assets/student --n 2048 --seeds 0 1 2 --guidance 3

A seed draws the prompts (the other training pictures are the reference) and the noise. The diversity within a caption is
the mean distance between the features of pictures of one prompt, of teacher and student. Progress is kept in --out,
so an interrupted comparison goes on where it was. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from diffdistill.cli.paths import find
from diffdistill.cli.quickstart import Ruler
from diffdistill.evaluation import diversity, write_json_atomic
from diffdistill.models.generate import generate
from diffdistill.models.teacher import Teacher, load_teacher

PROMPTS, PICTURES = 32, 8  # of which the diversity is measured


def within_caption(ruler: Ruler, model: Teacher, steps: int, guidance: float) -> float:
    prompts = [prompt for prompt in ruler.prompts[:PROMPTS] for _ in range(PICTURES)]
    images = torch.cat(list(generate(model, prompts, steps, guidance, ruler.seed, 64)))
    return round(diversity(ruler.extract(images), prompts), 4)


def compare(o: argparse.Namespace) -> dict[str, Any]:
    models = {"teacher": load_teacher(find(o.teacher)), "student": load_teacher(find(o.student))}
    how = {"teacher": (o.steps, o.guidance), "student": (1, 1.0)}
    made_from = {name: model.digest() for name, model in models.items()} | {"n": o.n, "steps": o.steps}
    made_from["guidance"] = o.guidance
    found: dict[str, Any] = json.loads(o.out.read_text()) if o.out.exists() else {}
    if found.get("made_from") != made_from:
        found = {"made_from": made_from, "seeds": {}}
    for seed in o.seeds:
        rows = found["seeds"].setdefault(str(seed), {})
        if set(rows) == set(models):
            continue
        ruler = Ruler(o.n, seed)
        found["protocol"] = {k: v for k, v in ruler.protocol.items() if k not in ("seed", "pictures")}
        for name in sorted(models, reverse=True):
            if name not in rows:
                rows[name] = ruler.measure(models[name], *how[name])
                rows[name]["diversity"] = within_caption(ruler, models[name], *how[name])
                write_json_atomic(o.out, found)
    kd = {name: [found["seeds"][str(s)][name]["kd"] for s in o.seeds] for name in models}
    summary = {name: {"kd": mean(v), "sd_over_seeds": stdev(v) if len(v) > 1 else None} for name, v in kd.items()}
    ratios = [a / b for a, b in zip(kd["student"], kd["teacher"], strict=True)]
    return {**found, "summary": {**summary, "student_over_teacher": ratios}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="assets/teacher")
    parser.add_argument("--student", default="assets/student")
    parser.add_argument("--n", type=int, default=2048)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("runs/compare.json"))
    print(json.dumps(compare(parser.parse_args()), indent=1))
