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
    "MobileNetFeatures",
    "Neighbourhoods",
    "PRDC",
    "cmmd",
    "diversity",
    "format_table",
    "frechet_distance",
    "frechet_distance_from_moments",
    "frechet_distance_infinity",
    "frechet_distance_of",
    "frechet_terms",
    "kernel_distance",
    "kernel_distance_subsets",
    "nearest",
    "prdc",
    "quick_numbers",
    "require_same_protocol",
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
    "MobileNetFeatures": "features",
    "Neighbourhoods": "neighbours",
    "PRDC": "states",
    "cmmd": "mmd",
    "diversity": "quick",
    "format_table": "report",
    "frechet_distance": "frechet",
    "frechet_distance_from_moments": "frechet",
    "frechet_distance_infinity": "frechet",
    "frechet_distance_of": "frechet",
    "frechet_terms": "frechet",
    "kernel_distance": "distances",
    "kernel_distance_subsets": "distances",
    "nearest": "neighbours",
    "prdc": "neighbours",
    "quick_numbers": "quick",
    "require_same_protocol": "feature_set",
    "write_json_atomic": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
