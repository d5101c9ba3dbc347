"""Generators measured against each other: generated images as a source, a ruler, and sweeps over steps and guidance.

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.comparison.generated import Generated
    from diffdistill.comparison.ruler import Ruler
    from diffdistill.comparison.sweep import Sweep
    from diffdistill.comparison.sweep_plan import SweepPlan, SweepProtocol, SweptGenerator

__all__ = [
    "Generated",
    "Ruler",
    "Sweep",
    "SweepPlan",
    "SweepProtocol",
    "SweptGenerator",
]

_MODULES = {
    "generated": ("Generated",),
    "ruler": ("Ruler",),
    "sweep": ("Sweep",),
    "sweep_plan": ("SweepPlan", "SweepProtocol", "SweptGenerator"),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
