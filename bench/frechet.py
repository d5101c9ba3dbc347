"""The Frechet distance at Inception's d = 2048 in float64, beside scipy's matrix square root and torchmetrics.

    OMP_NUM_THREADS=1 python bench/frechet.py

Full rank: all three from the same means and covariances of 3 d rows; they should agree. Rank deficient: n = 1000 rows
below d, from features to distance, by singular values of the rows and by the covariances they make. All in turn in one
run; medians of seconds, ratios and relative differences are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from scipy import linalg
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from diffdistill.evaluation.distances.frechet import frechet_distance, frechet_distance_from_moments

Moments = tuple[Tensor, Tensor]


def moments(x: Tensor) -> Moments:
    return x.mean(0), x.T.cov()


def ours(x: Moments, y: Moments) -> float:
    return frechet_distance_from_moments(*x, *y)


def torchmetrics(x: Moments, y: Moments) -> float:
    return float(_compute_fid(*x, *y))


def scipy(x: Moments, y: Moments) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = linalg.sqrtm(x[1].numpy() @ y[1].numpy()).real
    return float((x[0] - y[0]).square().sum() + x[1].trace() + y[1].trace()) - 2 * float(root.trace())


def in_turn(works: dict[str, tuple[Callable[[], float], int]]) -> dict[str, dict[str, float]]:
    """Distance and median seconds of each, run alternately, each as often as it says."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    values = {}
    for turn in range(max(rounds for _, rounds in works.values())):
        for name, (work, rounds) in works.items():
            if turn < rounds:
                started = time.perf_counter()
                values[name] = work()
                seconds[name].append(time.perf_counter() - started)
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr)
    return {name: {"distance": values[name], "seconds": statistics.median(seconds[name])} for name in works}


def compare(found: dict[str, dict[str, float]], base: str) -> dict[str, dict[str, float]]:
    """How much faster than the others the base is, and how far they are from it."""
    one = found[base]
    return {
        name: {
            "times_slower": other["seconds"] / one["seconds"],
            "relative_difference": abs(other["distance"] - one["distance"]) / one["distance"],
        }
        for name, other in found.items()
        if name != base
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--n", type=int, default=1000, help="rows of the rank-deficient sets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scipy-rounds", type=int, default=3, help="0 leaves it out")
    options = parser.parse_args()
    d, n = options.d, options.n

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * d, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, d, dtype=torch.float64)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    y = torch.randn(3 * d, d, generator=generator, dtype=torch.float64) * 0.1 @ mix + 0.01
    moments_x, moments_y = moments(x), moments(y)
    works: dict[str, tuple[Callable[[], float], int]] = {
        "ours": (lambda: ours(moments_x, moments_y), options.rounds),
        "torchmetrics": (lambda: torchmetrics(moments_x, moments_y), options.rounds),
        "scipy": (lambda: scipy(moments_x, moments_y), options.scipy_rounds),
    }
    full = in_turn({name: work for name, work in works.items() if work[1]})

    x, y = x[:n], y[:n]
    few = in_turn(
        {
            "svd": (lambda: frechet_distance(x, y), options.rounds),
            "covariance": (lambda: ours(moments(x), moments(y)), options.rounds),
            "torchmetrics": (lambda: torchmetrics(moments(x), moments(y)), options.rounds),
        }
    )
    report = {
        "d": d,
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "full_rank": {"n": 3 * d, "measured": full, "against_ours": compare(full, "ours")},
        "rank_deficient": {"n": n, "measured": few, "against_svd": compare(few, "svd")},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
