"""Measuring generators: features, distances between feature sets, and reports.

The names below load on first use, so that importing this package pulls in neither torch nor torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffdistill.evaluation.distances import (
        frechet_distance,
        frechet_distance_from_moments,
        kernel_distance,
    )
    from diffdistill.evaluation.features import MobileNetFeatures
    from diffdistill.evaluation.quick import diversity, quick_numbers
    from diffdistill.evaluation.report import format_table, write_json_atomic

__all__ = [
    "MobileNetFeatures",
    "diversity",
    "format_table",
    "frechet_distance",
    "frechet_distance_from_moments",
    "kernel_distance",
    "quick_numbers",
    "write_json_atomic",
]

_MODULE_OF = {
    "MobileNetFeatures": "features",
    "diversity": "quick",
    "format_table": "report",
    "frechet_distance": "distances",
    "frechet_distance_from_moments": "distances",
    "kernel_distance": "distances",
    "quick_numbers": "quick",
    "write_json_atomic": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
