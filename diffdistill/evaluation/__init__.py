"""Measuring generators: features, distances between feature sets, and reports.

The names below load on first use, so that importing this package pulls in neither torch nor torchvision. The function
`inception_score` is not among them, because the module of that name is: take it from there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.evaluation.distances import kernel_distance, kernel_distance_subsets
    from diffdistill.evaluation.feature_set import FeatureSet, require_same_protocol
    from diffdistill.evaluation.features import MobileNetFeatures
    from diffdistill.evaluation.frechet import (
        Extrapolation,
        FrechetTerms,
        frechet_distance,
        frechet_distance_from_moments,
        frechet_distance_infinity,
        frechet_distance_of,
        frechet_terms,
    )
    from diffdistill.evaluation.mmd import cmmd
    from diffdistill.evaluation.neighbours import Neighbourhoods, nearest, prdc
    from diffdistill.evaluation.pairs import MSSSIM, PSNR, PairMean, PairScore, ms_ssim, psnr
    from diffdistill.evaluation.patches import (
        PatchDistance,
        PatchFeatures,
        PatchScore,
        extract_patches,
        patch_distance,
    )
    from diffdistill.evaluation.perceptual import PerceptualDistance, dists, lpips, st_lpips
    from diffdistill.evaluation.quick import diversity, quick_numbers
    from diffdistill.evaluation.report import format_table, write_json_atomic
    from diffdistill.evaluation.states import (
        CMMD,
        PRDC,
        FeatureRows,
        FrechetDistance,
        InceptionScore,
        KernelDistance,
    )
    from diffdistill.evaluation.statistics import FeatureStatistics

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
    "write_json_atomic",
]

_MODULE_OF = {
    "CMMD": "states",
    "Extrapolation": "frechet",
    "FeatureRows": "states",
    "FeatureSet": "feature_set",
    "FeatureStatistics": "statistics",
    "FrechetDistance": "states",
    "FrechetTerms": "frechet",
    "InceptionScore": "states",
    "KernelDistance": "states",
    "MSSSIM": "pairs",
    "MobileNetFeatures": "features",
    "Neighbourhoods": "neighbours",
    "PRDC": "states",
    "PSNR": "pairs",
    "PairMean": "pairs",
    "PairScore": "pairs",
    "PatchDistance": "patches",
    "PatchFeatures": "patches",
    "PatchScore": "patches",
    "PerceptualDistance": "perceptual",
    "cmmd": "mmd",
    "dists": "perceptual",
    "diversity": "quick",
    "extract_patches": "patches",
    "format_table": "report",
    "frechet_distance": "frechet",
    "frechet_distance_from_moments": "frechet",
    "frechet_distance_infinity": "frechet",
    "frechet_distance_of": "frechet",
    "frechet_terms": "frechet",
    "kernel_distance": "distances",
    "kernel_distance_subsets": "distances",
    "lpips": "perceptual",
    "ms_ssim": "pairs",
    "nearest": "neighbours",
    "patch_distance": "patches",
    "prdc": "neighbours",
    "psnr": "pairs",
    "quick_numbers": "quick",
    "require_same_protocol": "feature_set",
    "st_lpips": "perceptual",
    "write_json_atomic": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
