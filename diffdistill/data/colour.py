"""Recoloured copies of images, with the colour in the caption, so that a model learns what "blue apple" means.

The hue of an image with one dominant hue is changed to each of a few named hues; lightness and saturation stay. The
colour's word is put before the image's name, in place of any colour word in it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 275}  # degrees
COLOUR_WORDS = {*HUES, "pink", "brown", "black", "white", "golden", "large"}


def to_hsv(images: Tensor) -> np.ndarray:
    """Images, uint8 (N, 3, H, W), in Pillow's HSV, as a uint8 array (N, H, W, 3)."""
    from PIL import Image

    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return np.stack([np.asarray(Image.fromarray(array).convert("HSV")) for array in arrays])


def dominant_hue(images: Tensor, coverage: float = 0.35, concentration: float = 0.85) -> list[float | None]:
    """The dominant hue of each image in degrees, in [0, 360); None where no hue covers enough of its non-white part.

    Args:
        images: uint8 Tensor of shape (N, 3, H, W), on a white ground.
        coverage: smallest share of the non-white pixels that are vivid.
        concentration: smallest length of the mean of their hues, as points on the unit circle.
    """
    hsv = to_hsv(images).astype(np.float64)
    found: list[float | None] = []
    for h, s, v in hsv.transpose(0, 3, 1, 2):
        angle, ink, vivid = h * (2 * np.pi / 256), (s > 25) | (v < 230), (s > 90) & (v > 70)
        if vivid.sum() < max(coverage * ink.sum(), 40):
            found.append(None)
            continue
        mean = np.exp(1j * angle[vivid]).mean()
        found.append(float(np.degrees(np.angle(mean)) % 360) if abs(mean) >= concentration else None)
    return found


def shift_hue(images: Tensor, degrees: float) -> Tensor:
    """Images, uint8 (N, 3, H, W), with the hue of every pixel turned by so many degrees."""
    from PIL import Image

    hsv = to_hsv(images)
    hsv[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)
    turned = [np.asarray(Image.frombytes("HSV", (a.shape[1], a.shape[0]), a.tobytes()).convert("RGB")) for a in hsv]
    return torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2).contiguous()


def with_colour(name: str, colour: str) -> str:
    """The name with its colour words replaced by another.

    >>> with_colour("green apple", "blue")
    'blue apple'
    """
    rest = [word for word in name.split() if word not in COLOUR_WORDS]
    return " ".join([colour, *(rest or name.split())])
