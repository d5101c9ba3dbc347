"""`diffdistill eval pairs`: how far each image is from its original of the same name, as codecs are measured."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffdistill.cli.eval.options import (
    check_free,
    device_of,
    in_options,
    is_first,
    parse,
    parser_of,
    protocol_of,
    reading_of,
)
from diffdistill.cli.paths import find
from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.evaluation.pairs.patches import PatchDistance
    from diffdistill.evaluation.pairs.pixels import PairMean

METRICS = ("psnr", "ms_ssim", "lpips", "st_lpips", "dists", "patches")
DEFAULT = ("psnr", "ms_ssim", "st_lpips")  # these need no download
NETWORKS = {"lpips": ("weights", "heads"), "st_lpips": ("weights",), "dists": ("weights", "heads")}
FILES = {
    "weights": {
        "lpips": "torchvision's AlexNet or VGG-16, for lpips: a file, or download",
        "st_lpips": "the file of st_lpips; by default the one that `make venv` installs",
        "dists": "torchvision's VGG-16, for dists: a file, or download",
    },
    "heads": {
        "lpips": "the file of lpips' heads; by default the one of torchmetrics",
        "dists": "the file of dists' heads; by default the one of torchmetrics",
    },
}


def main(argv: Sequence[str]) -> None:
    """Compare images with their originals: `--reference PATH --images PATH`, paired by name."""
    o = _options(argv)

    from diffdistill.data.loading import batches, share
    from diffdistill.data.sources import open_source
    from diffdistill.evaluation.measure import from_all_processes, left_out_of
    from diffdistill.evaluation.pairs.reading import Pairs
    from diffdistill.files import write_json_atomic

    source = Pairs(open_source(find(o.reference)), open_source(find(o.images)))
    n = o.pictures or len(source)
    if n > len(source):
        raise UserError(f"{source.name}: {len(source)} pairs; {n} were asked for")
    means, patches = _measures(o)
    reading, done = reading_of(o), []
    for batch in batches(source, share(n), o.batch_size, o.threads, 2, o.on_corrupt, reading.report):
        assert not isinstance(batch.images, list)
        x, y = batch.images[:, :3], batch.images[:, 3:]
        try:
            for mean in means.values():
                mean.update(x, y)
            if patches is not None:
                patches.update(y, x)
        except ValueError as error:
            first, last = source.label(batch.indices[0]), source.label(batch.indices[-1])
            raise UserError(f"{first}{f' to {last}' if last != first else ''}: {error}") from error
        done += batch.indices
    mine = list(zip(done, *(mean.values.tolist() for mean in means.values()), strict=True))
    rows = sorted(row for rows in from_all_processes(mine) for row in rows)  # each its index and its numbers
    means = {name: mean.all_reduce() for name, mean in means.items()}
    patches = patches.all_reduce() if patches is not None else None
    if not is_first():
        return
    report: dict[str, Any] = {"pictures": str(o.images), "reference": str(o.reference), "n": len(rows)}
    report["paired_by"] = source.paired_by
    if left_out := left_out_of(source, n - len(rows)):
        report["left_out"] = left_out
    try:
        report |= {name: _summary(mean) for name, mean in means.items()}
        if patches is not None:
            report["patches"] = _patch_numbers(patches)
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from error
    if o.per_picture:
        report["per_picture"] = [
            {"name": source.label(index), **dict(zip(means, map(_finite, numbers), strict=True))}
            for index, *numbers in rows
        ]
    print(json.dumps(report, indent=1, allow_nan=False), flush=True)
    if o.out is not None:
        write_json_atomic(o.out, report)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("pairs", main.__doc__ or "")
    parser.set_defaults(batch_size=4)  # photographs, in float64
    what = "a folder, .zip, .tar, folder of .tar shards, or .npz, whose images pair in order"
    parser.add_argument("--reference", required=True, help=f"the originals: {what}")
    parser.add_argument("--images", required=True, help="the images that are compared with them, under the same names")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=list(DEFAULT),
        metavar="METRIC",
        help=f"of {', '.join(METRICS)}; by default {', '.join(DEFAULT)}",
    )
    parser.add_argument("--per_picture", action="store_true", help="also list the numbers of each image")
    parser.add_argument("--net", choices=("alex", "vgg"), default="alex", help="the network of lpips and st_lpips")
    for metric, files in NETWORKS.items():
        for file in files:
            parser.add_argument(f"--{file}_{metric}", metavar="PATH", help=FILES[file][metric])
        parser.add_argument(
            f"--weights_sha256_{metric}", metavar="SHA256", help="sha256 of weights that are not the published ones"
        )
    parser.add_argument(
        "--patch_side", type=int, default=256, help="side of patches in pixels; --protocol names their features"
    )
    parser.add_argument(
        "--second_pass", choices=("hific", "all"), default="hific", help="which shifted patches are measured"
    )
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file --out")
    o = parse(parser, argv)
    for name in o.metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    for metric, files in NETWORKS.items():
        for option in (*(f"{file}_{metric}" for file in files), f"weights_sha256_{metric}"):
            if getattr(o, option) is not None and metric not in o.metrics:
                raise UserError(f"--{option} needs {metric} among the --metrics")
    for option in ("weights", "weights_sha256"):
        if getattr(o, option) is not None and "patches" not in o.metrics:
            raise UserError(f"--{option} is for the extractor of patches; add patches to the --metrics")
    if o.patch_side < 2 or o.patch_side % 2:
        raise UserError(f"--patch_side is {o.patch_side}; it must be even and at least 2")
    if o.out is not None:
        check_free(o.out, o.overwrite)
    return o


def _measures(o: argparse.Namespace) -> tuple[dict[str, PairMean], PatchDistance | None]:
    """The measures of --metrics, under the names of their numbers; one error names everything that they lack."""
    means: dict[str, PairMean] = {}
    patches, lacking = None, []
    for metric in dict.fromkeys(o.metrics):
        try:
            if metric == "patches":
                patches = _patches(o)
            else:
                name, mean = _mean(o, metric)
                means[name] = mean
        except UserError as error:
            lacking.append(f"{metric}: {error}")
    if lacking:
        raise UserError("; ".join(lacking))
    return means, patches


def _mean(o: argparse.Namespace, metric: str) -> tuple[str, PairMean]:
    from diffdistill.evaluation.pairs import perceptual
    from diffdistill.evaluation.pairs.pixels import MSSSIM, PSNR, PairMean

    if metric in ("psnr", "ms_ssim"):
        return metric, PSNR() if metric == "psnr" else MSSSIM()
    arguments: dict[str, Any] = {file: getattr(o, f"{file}_{metric}") for file in NETWORKS[metric]}
    arguments["allow_other_weights"] = getattr(o, f"weights_sha256_{metric}") or False
    if metric != "dists":
        arguments["net"] = o.net
    options = {file: f"--{file}_{metric}" for file in NETWORKS[metric]}
    with in_options(**options, allow_other_weights=f"--weights_sha256_{metric}"):
        distance: perceptual.PerceptualDistance = getattr(perceptual, metric)(**arguments, device=device_of(o))
    return distance.name, PairMean(distance, distance.protocol)


def _patches(o: argparse.Namespace) -> PatchDistance:
    from diffdistill.evaluation.pairs.patches import PatchDistance, PatchFeatures
    from diffdistill.evaluation.protocols import protocol_named

    protocol = protocol_named(o.protocol)
    if protocol.crop or protocol.resize_before:
        raise UserError(f"{protocol} crops or resizes images, and patches are cut from images as they are")
    return PatchDistance(PatchFeatures(protocol_of(o)[1], o.patch_side, o.second_pass))


def _summary(mean: PairMean) -> dict[str, Any]:
    """The numbers of one measure; None, null in JSON, is infinite: the PSNR of equal images."""
    score, values = mean.compute(), mean.values
    found: dict[str, Any] = {
        "mean": _finite(score.mean),
        "se": score.standard_error,
        "min": _finite(float(values.min())),
        "max": _finite(float(values.max())),
    }
    if infinite := int((~values.isfinite()).sum()):
        found["infinite"] = infinite
    return {**found, "protocol": mean.protocol}


def _patch_numbers(patches: PatchDistance) -> dict[str, Any]:
    from diffdistill.evaluation.metrics import named

    score = patches.compute()
    fd, kd = (f"{named(metric, patches.protocol)}/{patches.features.side}" for metric in ("fd", "kd"))
    return {
        fd: score.frechet.total,
        kd: score.kernel,
        f"{kd}_se": score.kernel_standard_error,
        "n": score.n,
        "n_reference": score.n_reference,
        "protocol": patches.protocol,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
