"""Measuring generators: features, distances between feature sets, agreement with captions, and reports.

The names below are imported when they are first used, so that importing this package needs neither torch nor
torchvision.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

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
    from diffdistill.evaluation.distances.inception_score import inception_score
    from diffdistill.evaluation.distances.kernel import kernel_distance, kernel_distance_subsets
    from diffdistill.evaluation.distances.neighbours import Neighbourhoods, nearest, prdc
    from diffdistill.evaluation.distances.states import CMMD, PRDC, FrechetDistance, InceptionScore, KernelDistance
    from diffdistill.evaluation.features.feature_rows import FeatureRows
    from diffdistill.evaluation.features.feature_set import FeatureSet, require_same_protocol
    from diffdistill.evaluation.features.mobilenet import MobileNetFeatures
    from diffdistill.evaluation.features.statistics import FeatureStatistics
    from diffdistill.evaluation.measure import Reading, collect
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
    "Reading",
    "cmmd",
    "collect",
    "dists",
    "diversity",
    "extract_patches",
    "format_table",
    "frechet_distance",
    "frechet_distance_from_moments",
    "frechet_distance_infinity",
    "frechet_distance_of",
    "frechet_terms",
    "inception_score",
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

_MODULES = {
    "distances.cmmd": ("cmmd",),
    "distances.frechet": (
        "Extrapolation",
        "FrechetTerms",
        "frechet_distance",
        "frechet_distance_from_moments",
        "frechet_distance_infinity",
        "frechet_distance_of",
        "frechet_terms",
    ),
    "distances.inception_score": ("inception_score",),
    "distances.kernel": ("kernel_distance", "kernel_distance_subsets"),
    "distances.neighbours": ("Neighbourhoods", "nearest", "prdc"),
    "distances.states": ("CMMD", "FrechetDistance", "InceptionScore", "KernelDistance", "PRDC"),
    "features.feature_rows": ("FeatureRows",),
    "features.feature_set": ("FeatureSet", "require_same_protocol"),
    "features.mobilenet": ("MobileNetFeatures",),
    "features.statistics": ("FeatureStatistics",),
    "measure": ("Reading", "collect"),
    "pairs.patches": ("PatchDistance", "PatchFeatures", "PatchScore", "extract_patches", "patch_distance"),
    "pairs.perceptual": ("PerceptualDistance", "dists", "lpips", "st_lpips"),
    "pairs.pixels": ("MSSSIM", "PSNR", "PairMean", "PairScore", "ms_ssim", "psnr"),
    "quick": ("diversity", "quick_numbers"),
    "table": ("format_table",),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
