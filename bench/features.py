"""Images per second from a folder of PNG files to Inception features: diffdistill against torch-fidelity.

    python bench/features.py --n 256 --side 256

Both read the same files and the same seeded random weights, in turn in one run, on the CPU; the network is built
beforehand. torch-fidelity runs as it does by default (worker processes decode) and, where that is faster, without
workers; `ratio` is to the faster of the two, by medians over the rounds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from same_numbers import write_pictures, write_weights
from torch import Tensor

from diffdistill.data.loading import batches
from diffdistill.data.sources import open_source
from diffdistill.evaluation.features.inception import InceptionFeatures


def compare(o: argparse.Namespace, root: Path) -> dict[str, Any]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.utils import extract_featuresdict_from_input_id

    folder, weights = write_pictures(root / "images", o.n, o.side, seed=0), write_weights(root, seed=0)
    extractor = InceptionFeatures(weights, allow_other_weights=True)
    network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))

    def ours() -> Tensor:
        source = open_source(folder)
        return torch.cat([extractor(batch.images) for batch in batches(source, range(len(source)), o.batch)])

    def theirs(save_cpu_ram: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            settings = {"batch_size": o.batch, "cuda": False, "verbose": False, "save_cpu_ram": save_cpu_ram}
            found: Tensor = extract_featuresdict_from_input_id(1, network, input1=str(folder), **settings)["2048"]
            return found

        return run

    work = {"ours": ours, "torch_fidelity": theirs(False), "torch_fidelity_no_workers": theirs(True)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    features: dict[str, Tensor] = {}
    for round_ in range(o.rounds):
        for name, piece in work.items():
            started = time.perf_counter()
            features[name] = piece()
            seconds[name].append(time.perf_counter() - started)
            print(f"round {round_ + 1}, {name}: {o.n / seconds[name][-1]:.2f} images/s", file=sys.stderr)
    speed = {name: o.n / statistics.median(spent) for name, spent in seconds.items()}
    reference = features["torch_fidelity"]
    return {
        "n": o.n,
        "side": o.side,
        "batch": o.batch,
        "threads": torch.get_num_threads(),
        "images_per_second": {name: round(value, 3) for name, value in speed.items()},
        "ratio": round(speed["ours"] / max(speed["torch_fidelity"], speed["torch_fidelity_no_workers"]), 3),
        "feature_difference": float((features["ours"] - reference).norm() / reference.norm()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="pictures")
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(chosen, Path(folder)), indent=1))
