"""Measuring generators: features, distances between feature sets, agreement with captions, and reports.

The names below are imported when they are first used, so that importing this package needs neither torch nor
torchvision.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.evaluation.agreement.towers import build_towers
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
    from diffdistill.evaluation.distances.streaming import CMMD, PRDC, FrechetDistance, InceptionScore, KernelDistance
    from diffdistill.evaluation.features.base import Extractor, build_extractor
    from diffdistill.evaluation.features.feature_rows import FeatureRows
    from diffdistill.evaluation.features.feature_set import FeatureSet, require_same_protocol
    from diffdistill.evaluation.features.inception import InceptionFeatures
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
    from diffdistill.evaluation.protocols import PROTOCOLS, Protocol, protocol_named
    from diffdistill.evaluation.quick import diversity, quick_numbers
    from diffdistill.evaluation.reference import load_features, read_reference
    from diffdistill.evaluation.report import evaluate, fid
    from diffdistill.evaluation.table import format_table

__all__ = [
    "CMMD",
    "Extractor",
    "Extrapolation",
    "FeatureRows",
    "FeatureSet",
    "FeatureStatistics",
    "FrechetDistance",
    "FrechetTerms",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "MSSSIM",
    "MobileNetFeatures",
    "Neighbourhoods",
    "PRDC",
    "PROTOCOLS",
    "PSNR",
    "PairMean",
    "PairScore",
    "PatchDistance",
    "PatchFeatures",
    "PatchScore",
    "PerceptualDistance",
    "Protocol",
    "Reading",
    "build_extractor",
    "build_towers",
    "cmmd",
    "collect",
    "dists",
    "diversity",
    "evaluate",
    "extract_patches",
    "fid",
    "format_table",
    "frechet_distance",
    "frechet_distance_from_moments",
    "frechet_distance_infinity",
    "frechet_distance_of",
    "frechet_terms",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "load_features",
    "lpips",
    "ms_ssim",
    "nearest",
    "patch_distance",
    "prdc",
    "protocol_named",
    "psnr",
    "quick_numbers",
    "read_reference",
    "require_same_protocol",
    "st_lpips",
]

_MODULES = {
    "agreement.towers": ("build_towers",),
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
    "distances.streaming": ("CMMD", "FrechetDistance", "InceptionScore", "KernelDistance", "PRDC"),
    "features.base": ("Extractor", "build_extractor"),
    "features.feature_rows": ("FeatureRows",),
    "features.feature_set": ("FeatureSet", "require_same_protocol"),
    "features.inception": ("InceptionFeatures",),
    "features.mobilenet": ("MobileNetFeatures",),
    "features.statistics": ("FeatureStatistics",),
    "measure": ("Reading", "collect"),
    "pairs.patches": ("PatchDistance", "PatchFeatures", "PatchScore", "extract_patches", "patch_distance"),
    "pairs.perceptual": ("PerceptualDistance", "dists", "lpips", "st_lpips"),
    "pairs.pixels": ("MSSSIM", "PSNR", "PairMean", "PairScore", "ms_ssim", "psnr"),
    "protocols": ("PROTOCOLS", "Protocol", "protocol_named"),
    "quick": ("diversity", "quick_numbers"),
    "reference": ("load_features", "read_reference"),
    "report": ("evaluate", "fid"),
    "table": ("format_table",),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
