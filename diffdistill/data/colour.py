"""Recoloured copies with the colour's word in the caption, so that "blue apple" means something.

A picture with one dominant hue is turned to a few named hues (lightness and saturation stay), and the colour's word
is put before its name in place of any colour word that was there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 275}  # degrees
COLOUR_WORDS = {*HUES, "pink", "brown", "black", "white", "golden", "large"}


def to_hsv(images: Tensor) -> np.ndarray:
    """uint8 (N, 3, H, W) to Pillow's HSV, uint8 array (N, H, W, 3)."""
    from PIL import Image

    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return np.stack([np.asarray(Image.fromarray(array).convert("HSV")) for array in arrays])


def dominant_hue(images: Tensor, coverage: float = 0.35, concentration: float = 0.85) -> list[float | None]:
    """Degrees in [0, 360) where one hue covers enough of a picture's non-white part, else None."""
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
    """Turn every pixel's hue; uint8 (N, 3, H, W) in and out."""
    from PIL import Image

    hsv = to_hsv(images)
    hsv[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)
    turned = [np.asarray(Image.frombytes("HSV", (a.shape[1], a.shape[0]), a.tobytes()).convert("RGB")) for a in hsv]
    return torch.from_numpy(np.stack(turned)).permute(0, 3, 1, 2).contiguous()


def with_colour(name: str, colour: str) -> str:
    """The name with its colour words replaced by one; "green apple", "blue" gives "blue apple"."""
    rest = [word for word in name.split() if word not in COLOUR_WORDS]
    return " ".join([colour, *(rest or name.split())])
