"""What the rows of prompts say together: means, shares, the worst thing and the worst prompt.

A mean is over the rows that have the number: an empty object has no Janus measure, a real 3D model no IoU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from diffdistill.text3d.evaluation.splits import SPLITS

Row = Mapping[str, Any]
MEANS = (
    "recall_at_1",
    "r_probability",
    "true_recall_at_1",
    "true_r_probability",
    "clip_recall_at_1",
    "clip_r_probability",
    "clip_true_recall_at_1",
    "clip_true_r_probability",
    "psnr_db",
    "true_psnr_db",
    "iou",
    "janus",
    "own_kd",
    "components",
    "true_components",
    "variety",
    "opacity",
)
SHARES = ("empty", "diverged", "watertight")


def ranked_by(rows: Sequence[Row]) -> str:
    """The number by which things and prompts are ordered: IoU where every row has it, or else PSNR."""
    return "iou" if all(row.get("iou") is not None for row in rows) else "psnr_db"


def worst_first(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows of prompts: those of empty and diverged objects first, then from the least value to the largest."""
    return sorted(rows, key=lambda row: (not (row["empty"] or row["diverged"]), row[key]))


def means(rows: Sequence[Row]) -> dict[str, Any]:
    """The number of prompts, means, and shares in [0, 1] of objects that are empty, diverged or watertight.

    The largest Janus measure stands beside its mean, since a mean hides a single thing with two faces; the mean of the
    KD of own views comes with its standard error over prompts.
    """
    found: dict[str, Any] = {"prompts": len(rows)}
    for key in MEANS:
        if known := [row[key] for row in rows if row.get(key) is not None]:
            found[key] = sum(known) / len(known)
    if known := [row["janus"] for row in rows if row.get("janus") is not None]:
        found["janus_most"] = max(known)
    if own := [row["own_kd"] for row in rows if "own_kd" in row]:
        found["own_kd_se"] = stdev(own) / len(own) ** 0.5 if len(own) > 1 else None
    for key in SHARES:
        if known := [row[key] for row in rows if row.get(key) is not None]:
            found[f"share_{key}"] = sum(known) / len(known)
    return found


def of_things(rows: Sequence[Row], key: str) -> dict[str, dict[str, Any]]:
    """Means of each thing, the worst first, each with its worst prompt."""
    found = {}
    for thing in dict.fromkeys(row["thing"] for row in rows):
        own = [row for row in rows if row["thing"] == thing]
        found[thing] = {**means(own), "worst_prompt": worst_first(own, key)[0]["prompt"]}
    return dict(sorted(found.items(), key=lambda item: item[1][key]))


def of_splits(rows: Sequence[Row], key: str) -> dict[str, dict[str, Any]]:
    """Means of each split that has prompts, and of all; with the worst thing, its value, and the worst prompt."""
    found = {}
    for split in (*SPLITS, "all"):
        own = [row for row in rows if split in ("all", row["split"])]
        if not own:
            continue
        thing, worst = next(iter(of_things(own, key).items()))
        ends = {"ranked_by": key, "worst_thing": thing, "worst_thing_value": worst[key]}
        found[split] = {**means(own), **ends, "worst_prompt": worst_first(own, key)[0]["prompt"]}
    return found
