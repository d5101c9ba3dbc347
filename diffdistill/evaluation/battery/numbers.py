"""The numbers of a generator on each encoder, and their ratios to the teacher's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffdistill.evaluation.distances.vendi import vendi_within
from diffdistill.evaluation.quick import diversity, quick_numbers

Numbers = dict[str, Any]


def encoder_numbers(features: Tensor, reference: Tensor, repeated: Tensor, captions: Sequence[str]) -> Numbers:
    """Distance and variety on one encoder.

    Args:
        features: of generated images, Tensor of shape (n, d).
        reference: of real images, Tensor of shape (n_reference, d).
        repeated: of several images of each of some captions, Tensor of shape (m, d).
        captions: m captions.

    Returns:
        `kd`, `kd_se`, `fd`, `n` and `n_reference` as `quick_numbers` has them; `variety`, the mean distance of two
        images of a caption; `vendi`, the mean Vendi score of the images of a caption.

    Raises:
        ValueError: as `quick_numbers`, `diversity` and `vendi_within`.
    """
    return {
        **quick_numbers(features, reference),
        "variety": diversity(repeated, captions),
        "vendi": vendi_within(repeated, captions),
    }


def ratios(generator: Mapping[str, Numbers], teacher: Mapping[str, Numbers]) -> dict[str, dict[str, float | None]]:
    """A generator's numbers over its teacher's, by encoder: `kd`, `variety` and `vendi`.

    The ratio of kernel distances is None where the teacher's is not above two of its standard errors, because the ratio
    would be that of two chances. The ratio of Vendi scores is that of the
    numbers of images beyond the first, (v - 1) / (v_teacher - 1), so that it is 0 for a caption that always gives one
    image.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, mine in generator.items():
        other = teacher[name]
        beyond = other["vendi"] - 1
        found[name] = {
            "kd": mine["kd"] / other["kd"] if other["kd"] > 2 * other["kd_se"] else None,
            "variety": mine["variety"] / other["variety"] if other["variety"] > 0 else None,
            "vendi": (mine["vendi"] - 1) / beyond if beyond > 1e-12 else None,
        }
    return found


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean, or None where a value is missing or not above 0, such as a distance below its chance.

    >>> geometric_mean([2.0, 8.0]), geometric_mean([1.0, None])
    (4.0, None)
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values) or min(known) <= 0:
        return None
    return math.exp(statistics.fmean(math.log(value) for value in known))


def over_encoders(found: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float | None]:
    """Ratios over some encoders: geometric means of `kd`, `variety` and `vendi`, and the worst of each.

    Args:
        found: as `ratios` gives it.
        names: of the encoders.
    """
    summary: dict[str, float | None] = {}
    for key, worst in (("kd", max), ("variety", min), ("vendi", min)):
        values = [found[name][key] for name in names]
        known = [value for value in values if value is not None]
        summary[key] = geometric_mean(values)
        summary[f"worst_{key}"] = worst(known) if known and len(known) == len(values) else None
    return summary
