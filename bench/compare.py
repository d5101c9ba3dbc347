"""A one-step student against its teacher's many steps: same prompts, same reference, several seeds.

    python bench/compare.py --student assets/student --n 2048 --seeds 0 1 2 --guidance 3

A seed draws the prompts (the other training images are the reference) and the noise. Diversity within a caption is
the mean distance between the features of images of one prompt, of teacher and student. Progress is kept in --out,
so an interrupted comparison goes on where it was, and a new student meets the same teacher. Prints the summary as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from diffdistill.cli.paths import find
from diffdistill.comparison.ruler import Ruler
from diffdistill.evaluation import diversity
from diffdistill.files import write_json_atomic
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
    found: dict[str, Any] = json.loads(o.out.read_text()) if o.out.exists() else {}
    for seed in o.seeds:
        rows = found.setdefault("seeds", {}).setdefault(str(seed), {})
        todo = [name for name in models if not _is_of(rows.get(name, {}), models[name], o.n, *how[name])]
        ruler = Ruler(o.n, seed) if todo else None
        for name in todo:
            assert ruler is not None
            row = ruler.measure(models[name], *how[name])
            row["diversity"] = within_caption(ruler, models[name], *how[name])
            rows[name] = {**row, "digest": models[name].digest(), "protocol": ruler.protocol}
            write_json_atomic(o.out, found)
    chosen = [found["seeds"][str(seed)] for seed in o.seeds]
    summary: dict[str, Any] = {
        f"{key} of {name}": [round(rows[name][key], 4) for rows in chosen]
        for key in ("kd", "kd_se", "fd", "diversity")
        for name in models
    }
    summary["student's KD over teacher's"] = [
        round(rows["student"]["kd"] / rows["teacher"]["kd"], 3) for rows in chosen
    ]
    return summary


def _is_of(row: dict[str, Any], model: Teacher, n: int, steps: int, guidance: float) -> bool:
    made = (row.get("digest"), row.get("n"), row.get("steps"), row.get("guidance"))
    return made == (model.digest(), n, steps, guidance)  # delete --out where the images or the extractor change


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
