"""Whether the numbers order known damage: blur, noise, grey and mode drop of growing strength, on real emoji.

    python bench/damage.py --n 900

n real images are damaged and held against the other real ones; at strength 0 stands the floor, and beside it
images of concepts held out. A generator that gives back its training images shows in `nearest_median`, the median
distance to the nearest training image, where KD and FD alone would praise it. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.cli.paths import find
from diffdistill.data.emoji import load_emoji
from diffdistill.evaluation import MobileNetFeatures, nearest, prdc, quick_numbers

BLURS, NOISES, GREYS, MODES = (0.5, 1.0, 2.0), (8.0, 25.0, 60.0), (0.3, 0.6, 1.0), (0.5, 0.2, 0.05)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of uint8 images (N, 3, H, W)."""
    reach = int(3 * sigma) + 1
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    y = F.pad(x.float(), (reach, reach, reach, reach), mode="replicate")
    y = F.conv2d(F.conv2d(y, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return y.round().clamp(0, 255).byte()


def noise(x: Tensor, levels: float) -> Tensor:
    """White noise of a standard deviation in grey levels."""
    draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return (x + levels * draw).round().clamp(0, 255).byte()


def grey(x: Tensor, share: float) -> Tensor:
    """Colour taken out, by a share of it."""
    luma = (x.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return (x + share * (luma - x)).round().clamp(0, 255).byte()


def mode_drop(x: Tensor, share: float) -> Tensor:
    """Only the first share of the images, repeated."""
    kept = max(1, round(share * len(x)))
    return x[torch.arange(len(x)) % kept]


DAMAGES: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur, sigma in pixels": (blur, BLURS),
    "noise, grey levels": (noise, NOISES),
    "grey, share": (grey, GREYS),
    "mode drop, share kept": (mode_drop, MODES),
}


def measure(n: int, seed: int) -> dict[str, Any]:
    emoji, extract = load_emoji(find("assets/emoji")), MobileNetFeatures()
    order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(seed))
    drawn, rest = emoji.images[order[:n]], emoji.images[order[n:]]
    reference = extract(rest)

    def numbers(pictures: Tensor) -> dict[str, float]:
        features = extract(pictures)
        found = quick_numbers(features, reference)
        _, distances = nearest(features, reference, 1)
        kept = {name: round(found[name], 5) for name in ("kd", "kd_se", "fd")}
        return kept | {"recall": round(prdc(features, reference).recall, 4), "nearest_median": _median(distances)}

    report: dict[str, Any] = {"n": n, "n_reference": len(rest), "floor": numbers(drawn)}
    for name, (damage, strengths) in DAMAGES.items():
        report[name] = {f"{strength:g}": numbers(damage(drawn, strength)) for strength in strengths}
        values = [report["floor"]["kd"], *(row["kd"] for row in report[name].values())]
        report[name]["kd grows"] = all(a < b for a, b in zip(values, values[1:], strict=False))
    held_out = load_emoji(find("assets/emoji"), "heldout").images
    report["held-out concepts, all there are"] = numbers(held_out)
    report["memorised: training images given back"] = numbers(rest[:n])
    return report


def _median(distances: Tensor) -> float:
    return round(float(distances.median()), 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    print(json.dumps(measure(o.n, o.seed), indent=1))
