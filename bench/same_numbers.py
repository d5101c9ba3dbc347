"""FID and KID by torch-fidelity, torchmetrics, clean-fid and by diffdistill, on the same images and weights.

    python bench/same_numbers.py --n 512

Two sets of seeded random images are written as PNG files, one seeded random Inception weight file is written for all
(and, for clean-fid, its TorchScript form), and every tool goes its own way from there to its number, 2048 features and
its own matrix arithmetic. `relative` is |ours / theirs - 1|. Takes about 1 s an image of --n on one core, and two
minutes for the matrix square roots. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.data.loading import batches
from diffdistill.data.sources import open_source
from diffdistill.evaluation import frechet_distance, kernel_distance
from diffdistill.evaluation.features.inception import InceptionFeatures
from diffdistill.evaluation.features.inception_network import random_state_dict


def write_pictures(folder: Path, n: int, side: int, seed: int, light: float = 1.0) -> Path:
    """n PNG files of noise on four scales; with `light` below 1 darker."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        x = torch.zeros(1, 3, side, side)
        for scale in (2, 4, 16, side):
            x += F.interpolate(torch.rand(1, 3, scale, scale, generator=generator), size=side, mode="bicubic")
        pixels = (x[0] * light / 4).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i:05}.png", compress_level=1)
    return folder


def write_weights(folder: Path, seed: int) -> Path:
    path = folder / "random-inception.pth"
    torch.save(random_state_dict(seed), path)
    return path


class ForCleanFid(nn.Module):
    """torch-fidelity's network in the form of the TorchScript file that clean-fid reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        stages = [child for name, child in network.named_children() if name != "fc"]
        self.layers = torch.jit.trace(nn.Sequential(*stages), torch.zeros(2, 3, 299, 299))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - 128) / 128)


def read(folder: Path) -> Tensor:
    source = open_source(folder)
    return torch.cat([batch.images for batch in batches(source, range(len(source)))])


def timed(what: str, work: Callable[[], Any], seconds: dict[str, float]) -> Any:
    print(what, end=" ", flush=True, file=sys.stderr)
    started = time.perf_counter()
    found = work()
    seconds[what] = round(time.perf_counter() - started, 1)
    print(f"{seconds[what]} s", file=sys.stderr)
    return found


def compare(o: argparse.Namespace, root: Path) -> dict[str, Any]:
    import torch_fidelity
    from cleanfid import fid as cleanfid
    from cleanfid.inception_torchscript import InceptionV3W
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    weights = write_weights(root, o.seed)
    folders = [write_pictures(root / "a", o.n, o.side, 1), write_pictures(root / "b", o.n, o.side, 2, light=0.95)]
    images = [read(folder) for folder in folders]
    subsets, size = 10, o.n // 2
    seconds: dict[str, float] = {}

    def ours(resize: str) -> list[Tensor]:
        extractor = InceptionFeatures(weights, allow_other_weights=True, resize=resize)
        return [extractor(x, progress=True) for x in images]

    def fidelity() -> dict[str, float]:
        found: dict[str, float] = torch_fidelity.calculate_metrics(
            input1=str(folders[0]), input2=str(folders[1]), fid=True, kid=True, kid_subsets=subsets,
            kid_subset_size=size, feature_extractor_weights_path=str(weights), cuda=False, cache=False, verbose=False,
        )  # fmt: skip
        return found

    def metrics() -> float:
        fid = FrechetInceptionDistance(feature_extractor_weights_path=str(weights))
        for x, real in zip(images, (True, False), strict=True):
            for part in x.split(32):
                fid.update(part, real=real)
        return float(fid.compute())

    def clean() -> float:
        network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
        torch.jit.script(ForCleanFid(network)).save(root / "inception-2015-12-05.pt")
        network = InceptionV3W(str(root), download=False)
        cpu = {"device": torch.device("cpu"), "verbose": False, "batch_size": 32}
        return float(cleanfid.compare_folders(str(folders[0]), str(folders[1]), network, "clean", **cpu))

    def kernel(x: Tensor, y: Tensor) -> float:
        draws = np.random.RandomState(2020)  # torch-fidelity's subsets
        chosen = [[torch.from_numpy(draws.choice(o.n, size, replace=False)) for _ in range(2)] for _ in range(subsets)]
        return float(np.mean([kernel_distance(x[i], y[j])[0] for i, j in chosen]))

    legacy = timed("ours, tf1-bilinear", lambda: ours("tf1-bilinear"), seconds)
    theirs = timed("torch-fidelity", fidelity, seconds)
    pairs = {
        "torch-fidelity FID": (frechet_distance(*legacy), theirs["frechet_inception_distance"]),
        "torch-fidelity KID": (kernel(*legacy), theirs["kernel_inception_distance_mean"]),
    }
    antialiased = timed("ours, bilinear-antialias", lambda: ours("bilinear-antialias"), seconds)
    pairs["torchmetrics FID"] = (frechet_distance(*antialiased), timed("torchmetrics", metrics, seconds))
    cleaned = timed("ours, clean", lambda: ours("clean"), seconds)
    pairs["clean-fid FID"] = (frechet_distance(*cleaned), timed("clean-fid", clean, seconds))
    rows = {name: {"ours": a, "theirs": b, "relative": abs(a / b - 1)} for name, (a, b) in pairs.items()}
    return {"n": o.n, "side": o.side, "threads": torch.get_num_threads(), "numbers": rows, "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512, help="pictures a set")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")  # scipy's, about the square root that clean-fid calls
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(chosen, Path(folder)), indent=1))
