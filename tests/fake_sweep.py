"""A sweep as `diffdistill eval sweep` writes it, with numbers from closed forms and images of coloured shapes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROMPTS = [
    "mahjong tile red dragon, noto",
    "red apple, noto",
    "foggy, twemoji",
    "closed umbrella, noto",
    "night with stars, noto",
    "sunrise over mountains, twemoji",
    "woman in motorized wheelchair facing right, noto",
    "cityscape at dusk, noto",
    "blue car, twemoji",
    "rainbow, noto",
    "bridge at night, noto",
    "water wave, noto",
]
STEPS = (1, 2, 4, 8, 25, 50)
GUIDANCES = (1.0, 2.0, 3.0, 4.0)


def numbers(steps: int, guidance: float, seed: int) -> dict[str, float]:
    """KD falls with steps to a floor that guidance 3 makes lowest; agreement grows with guidance and steps."""
    wobble = 0.004 * math.sin(1 + 7 * seed + steps + guidance)
    late = math.exp(-math.log2(steps) / 1.6)
    kd = 0.247 + 0.012 * (guidance - 3) ** 2 + 0.33 * late + wobble
    return {
        "kd": kd,
        "kd_se": 0.013,
        "fd": 232 + 9 * (guidance - 2.4) ** 2 + 205 * late + 300 * wobble,
        "precision": min(0.95, 0.55 + 0.07 * guidance - 0.3 * late + wobble),
        "recall": 0.46 - 0.05 * guidance - 0.1 * late + wobble,
        "density": 0.6 + 0.08 * guidance - 0.3 * late + 2 * wobble,
        "coverage": 0.62 - 0.01 * (guidance - 2) ** 2 - 0.25 * late + wobble,
        "align_score": 0.205 + 0.035 * math.log(guidance + 0.4) - 0.06 * late + wobble / 3,
        "align_r1": 0.33 + 0.09 * math.log(guidance + 0.4) - 0.2 * late + wobble,
        "align_r5": 0.63 + 0.09 * math.log(guidance + 0.4) - 0.2 * late + wobble,
        "align_captions": 64,
        "nearest_median": 21.4 - 1.1 * guidance + 3 * late + 40 * wobble,
        "seconds_per_image": 0.0024 * steps * (1 if guidance == 1 else 2) + 0.0015 + wobble / 9,
    }


def student_numbers(seed: int) -> dict[str, float]:
    moved = {"kd": 0.238 - 0.004 * (seed == 2), "fd": 226.0 - 2 * seed, "recall": 0.19, "align_score": 0.241}
    return {
        **numbers(50, 3.0, seed),
        **moved,
        "nearest_median": 17.2 + 0.2 * seed,
        "seconds_per_image": 0.0119 + 0.0002 * seed,
    }


def over_seeds(found: dict[int, dict[str, float]]) -> dict[str, Any]:
    """seeds, mean and sample standard deviation, null of one seed."""
    keys = next(iter(found.values())).keys()
    values = {key: [entry[key] for entry in found.values()] for key in keys}
    return {
        "seeds": {str(seed): entry for seed, entry in found.items()},
        "mean": {key: float(np.mean(v)) for key, v in values.items()},
        "sd": {key: float(np.std(v, ddof=1)) if len(v) > 1 else None for key, v in values.items()},
    }


def shapes(n: int, side: int, noise: float, seed: int = 0) -> NDArray[np.uint8]:
    """n squares side by side, (side, n * side, 3): a disc or a box each on white, blurred by noise."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    cells = []
    for i in range(n):
        hue = np.array([math.cos(i), math.cos(i - 2.1), math.cos(i + 2.1)]) * 100 + 120
        inside = (x**2 + y**2 < 0.13) if i % 2 else (np.maximum(abs(x), abs(y)) < 0.3)
        cell = np.where(inside[..., None], hue, 255) + draw.normal(0, 1, (side, side, 3)) * noise
        cells.append(cell.clip(0, 255).astype(np.uint8))
    return np.concatenate(cells, 1)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_fake_sweep(
    folder: Path,
    steps: tuple[int, ...] = STEPS,
    guidances: tuple[float, ...] = GUIDANCES,
    seeds: tuple[int, ...] = (0, 1, 2),
    side: int = 64,
    **changed: Any,
) -> dict[str, Any]:
    """Write a sweep of a teacher and a student; `changed` replaces keys of the record, which is returned."""
    rows = []
    for n in steps:
        for guidance in guidances:
            rows.append(_row(folder, "teacher", n, guidance, {s: numbers(n, guidance, s) for s in seeds}, side))
    rows.append(_row(folder, "student", 1, 1.0, {s: student_numbers(s) for s in seeds}, side))
    real = {"kd": -0.0004, "kd_se": 0.001, "fd": 99.2, "precision": 0.78, "recall": 0.77, "density": 0.98}
    real |= {"coverage": 0.94, "align_score": 0.262, "align_r1": 0.52, "align_r5": 0.81, "nearest_median": 18.9}
    real["align_captions"] = 64
    write_png(folder / "strips" / "real.png", shapes(12, side, 0))
    write_png(folder / "nearest" / "real.png", np.concatenate([shapes(12, side, 0), shapes(12, side, 25)]))
    constant = ("nearest_median", "align_captions")
    of_seed = {s: {k: v if k in constant else v * (1 + 0.004 * s) for k, v in real.items()} for s in seeds}
    floor = over_seeds(of_seed)
    floor["sd"]["nearest_median"] = None
    record = {
        "version": 2,
        "protocol": {
            "protocol": "mobilenet-offline@1a2b3c4d",
            "extractor": "mobilenet-v2",
            "quantisation": "uint8-round",
        },
        "agreement": {
            "kind": "align",
            "key": "",
            "extractor": "align (towers, heads)",
            "held_out": {"captions": {"r1": 0.633, "r5": 0.883, "among": 128, "score": 0.4921}},
        },
        "agreement_metric": "align_score",
        "prompts_of": "training",
        "nearest_of": "training",
        "timing": {"pictures_at_a_time": 16, "on": [{"threads": 1, "device": "cpu"}]},
        "reference": {"source": "assets/emoji", "n": 2184},
        "pictures": 512,
        "agreement_pictures": 128,
        "seeds": list(seeds),
        "metrics": ["fd", "kd", "prdc"],
        "complete": True,
        "generators": [
            {"name": "teacher", "model": "assets/teacher", "digest": "5f2c0a91b7d3e846", "kind": "model"},
            {"name": "student", "model": "assets/student", "digest": "c81e77aa02f95b1d", "kind": "student"},
        ],
        "rows": rows,
        "floor": {
            **floor,
            "unseen": {"align_score": 0.2111, "align_r1": 0.44, "align_r5": 0.7, "align_captions": 64, "n": 64},
            "strip": "strips/real.png",
            "nearest": "nearest/real.png",
            "nearest_distances": [18.9 + 2.5 * math.sin(i) for i in range(12)],
        },
        "samples": {"prompts": PROMPTS, "seed": seeds[0]},
        **changed,
    }
    (folder / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    return record


def _row(folder: Path, name: str, steps: int, guidance: float, found: dict[int, Any], side: int) -> dict[str, Any]:
    file = f"{name}-{steps}-{guidance:g}.png"
    made = shapes(12, side, 25 if name == "student" else 110 / steps + 6 * guidance)
    write_png(folder / "strips" / file, made)
    write_png(folder / "nearest" / file, np.concatenate([made, shapes(12, side, 0)]))
    middle = found[min(found)]["nearest_median"]
    return {
        "generator": name,
        "steps": steps,
        "guidance": guidance,
        "nfe": steps * (1 if guidance == 1 else 2),
        **over_seeds(found),
        "strip": f"strips/{file}",
        "nearest": f"nearest/{file}",
        "nearest_distances": [middle + 3 * math.sin(2 + i) for i in range(12)],
    }
