"""Colours as a screen shows them (sRGB) and as light (linear), IEC 61966-2-1.

glTF wants textures in sRGB and colours of vertices in linear light.
"""

from __future__ import annotations

import numpy as np


def to_linear(colours: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light in [0, 1], float64.

    >>> to_linear(np.array([0.0, 0.04045, 0.5, 1.0])).round(5).tolist()
    [0.0, 0.00313, 0.21404, 1.0]
    """
    c = np.asarray(colours, np.float64)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] to sRGB in [0, 1], float64.

    >>> to_srgb(to_linear(np.array([0.0, 0.02, 0.5, 1.0]))).round(5).tolist()
    [0.0, 0.02, 0.5, 1.0]
    """
    c = np.asarray(light, np.float64)
    return np.where(c <= 0.0031308, c * 12.92, 1.055 * np.maximum(c, 0.0031308) ** (1 / 2.4) - 0.055)


def to_levels(colours: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] to levels, uint8, rounded to the nearest."""
    return (np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8)
