"""What the leaderboard's methods draw: the same captions and noise, each method at the steps that suit it best."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from sweep_rows import best_by_steps, read_rows

from diffdistill.data.save import save_labelled_grids
from diffdistill.models.generate import generate

PROMPTS = (
    "red apple, noto", "grinning face, noto", "automobile, noto", "octopus, noto", "house with garden, noto",
    "blue heart, noto", "dog face, twemoji", "guitar, twemoji", "sunflower, twemoji", "airplane, twemoji",
    "soccer ball, twemoji", "umbrella, twemoji",
)  # fmt: skip


def draw(out: Path, names: Iterable[str], path: Path) -> None:
    """Write a row of images a method, of seed 0, in order of KD; the teacher's comes first."""
    places = {name: (out / f"{name}-s0" / "export", out / f"{name}-s0" / "final") for name in names}
    places["teacher"] = Path("assets/teacher"), out / "teacher"
    found = {}
    for name, (folder, sweep) in places.items():
        rows = best_by_steps(read_rows(sweep / "sweep.json")).values()
        if rows:
            found[name] = folder, min(rows, key=lambda row: row["mean"]["kd"])
    grids = {}
    for name in sorted(found, key=lambda name: (name != "teacher", found[name][1]["mean"]["kd"])):
        folder, row = found[name]
        steps, scale, kd = row["steps"], row["guidance"], row["mean"]["kd"]
        label = f"{name}, {steps} step{'s' * (steps > 1)}" + (f", guidance {scale:g}" if scale > 1 else "")
        grids[f"{label}: KD {kd:.3f}"] = torch.cat(list(generate(str(folder), PROMPTS, steps, scale)))
    if grids:
        save_labelled_grids(path, grids, columns=len(PROMPTS))
