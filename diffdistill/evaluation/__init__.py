"""Measuring generators: features, distances between feature sets, and reports.

The names below load on first use, so that importing this package pulls in neither torch nor torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.evaluation.distances.cmmd import cmmd
    from diffdistill.evaluation.distances.frechet import (
        Extrapolation,
        FrechetTerms,
        frechet_distance,
        frechet_distance_from_moments,
        frechet_distance_infinity,
        frechet_distance_of,
        frechet_terms,
    )
    from diffdistill.evaluation.distances.kernel import kernel_distance, kernel_distance_subsets
    from diffdistill.evaluation.distances.neighbours import Neighbourhoods, nearest, prdc
    from diffdistill.evaluation.distances.states import (
        CMMD,
        PRDC,
        FeatureRows,
        FrechetDistance,
        InceptionScore,
        KernelDistance,
    )
    from diffdistill.evaluation.features.feature_set import FeatureSet, require_same_protocol
    from diffdistill.evaluation.features.mobilenet import MobileNetFeatures
    from diffdistill.evaluation.features.statistics import FeatureStatistics
    from diffdistill.evaluation.pairs.patches import (
        PatchDistance,
        PatchFeatures,
        PatchScore,
        extract_patches,
        patch_distance,
    )
    from diffdistill.evaluation.pairs.perceptual import PerceptualDistance, dists, lpips, st_lpips
    from diffdistill.evaluation.pairs.pixels import MSSSIM, PSNR, PairMean, PairScore, ms_ssim, psnr
    from diffdistill.evaluation.quick import diversity, quick_numbers
    from diffdistill.evaluation.table import format_table

__all__ = [
    "CMMD",
    "Extrapolation",
    "FeatureRows",
    "FeatureSet",
    "FeatureStatistics",
    "FrechetDistance",
    "FrechetTerms",
    "InceptionScore",
    "KernelDistance",
    "MSSSIM",
    "MobileNetFeatures",
    "Neighbourhoods",
    "PRDC",
    "PSNR",
    "PairMean",
    "PairScore",
    "PatchDistance",
    "PatchFeatures",
    "PatchScore",
    "PerceptualDistance",
    "cmmd",
    "dists",
    "diversity",
    "extract_patches",
    "format_table",
    "frechet_distance",
    "frechet_distance_from_moments",
    "frechet_distance_infinity",
    "frechet_distance_of",
    "frechet_terms",
    "kernel_distance",
    "kernel_distance_subsets",
    "lpips",
    "ms_ssim",
    "nearest",
    "patch_distance",
    "prdc",
    "psnr",
    "quick_numbers",
    "require_same_protocol",
    "st_lpips",
]

_MODULE_OF = {
    "CMMD": "distances.states",
    "Extrapolation": "distances.frechet",
    "FeatureRows": "distances.states",
    "FeatureSet": "features.feature_set",
    "FeatureStatistics": "features.statistics",
    "FrechetDistance": "distances.states",
    "FrechetTerms": "distances.frechet",
    "InceptionScore": "distances.states",
    "KernelDistance": "distances.states",
    "MSSSIM": "pairs.pixels",
    "MobileNetFeatures": "features.mobilenet",
    "Neighbourhoods": "distances.neighbours",
    "PRDC": "distances.states",
    "PSNR": "pairs.pixels",
    "PairMean": "pairs.pixels",
    "PairScore": "pairs.pixels",
    "PatchDistance": "pairs.patches",
    "PatchFeatures": "pairs.patches",
    "PatchScore": "pairs.patches",
    "PerceptualDistance": "pairs.perceptual",
    "cmmd": "distances.cmmd",
    "dists": "pairs.perceptual",
    "diversity": "quick",
    "extract_patches": "pairs.patches",
    "format_table": "table",
    "frechet_distance": "distances.frechet",
    "frechet_distance_from_moments": "distances.frechet",
    "frechet_distance_infinity": "distances.frechet",
    "frechet_distance_of": "distances.frechet",
    "frechet_terms": "distances.frechet",
    "kernel_distance": "distances.kernel",
    "kernel_distance_subsets": "distances.kernel",
    "lpips": "pairs.perceptual",
    "ms_ssim": "pairs.pixels",
    "nearest": "distances.neighbours",
    "patch_distance": "pairs.patches",
    "prdc": "distances.neighbours",
    "psnr": "pairs.pixels",
    "quick_numbers": "quick",
    "require_same_protocol": "features.feature_set",
    "st_lpips": "pairs.perceptual",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
