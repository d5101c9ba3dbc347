"""Crops of reconstructions: where two of them differ most, and the centre."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from diffdistill.evaluation.rate.measures import OURS
from diffdistill.files import write_atomic

SIDE = 192
ORIGINAL = "original"


def most_different(a: Tensor, b: Tensor, side: int = SIDE) -> tuple[int, int]:
    """Where the mean absolute difference of two images over a square is largest.

    Args:
        a: uint8 tensor of shape (3, H, W).
        b: the other image, of the same shape.
        side: of the square, in pixels; shorter in an image that is smaller.

    Returns:
        The left and the upper edge, in pixels; of equal places the one nearest to the upper left.
    """
    differs = (a.double() - b.double()).abs().sum(0)
    height, width = (min(side, n) for n in differs.shape)
    sums = F.pad(differs.cumsum(0).cumsum(1), (1, 0, 1, 0))  # of all pixels above and to the left
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    at = int(boxes.flatten().argmax())
    return at % boxes.shape[1], at // boxes.shape[1]


def centre(image: Tensor, side: int = SIDE) -> tuple[int, int]:
    """The left and the upper edge of the square in the middle of an image (3, H, W)."""
    height, width = image.shape[1:]
    return (width - min(side, width)) // 2, (height - min(side, height)) // 2


def write_crops(image: Tensor, made: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    """Write PNG files of crops of all reconstructions and of the original.

    Args:
        image: the original, uint8 of shape (3, H, W).
        made: reconstructions by codec, with "ours" among them.
        folder: where the files go; their links begin at the folder above its parent.

    Returns:
        "side": width and height of a crop; "places": for each other image (codecs and "original"), where it and ours
        differ most: "at" (left, top), and links "ours" and "other"; "centre": "at", and "links" of all images; "worst":
        the same at the place where ours and the original differ most.
    """
    everything = {**made, ORIGINAL: image}
    size = min(SIDE, image.shape[2]), min(SIDE, image.shape[1])

    def link(name: str, at: tuple[int, int]) -> str:
        x, y = at
        file = folder / f"{name}-{x}-{y}.png"
        crop = everything[name][:, y : y + size[1], x : x + size[0]]
        write_atomic(file, png(crop))
        return f"{folder.parent.name}/{folder.name}/{file.name}"

    places = {}
    for name in everything:
        if name != OURS:
            at = most_different(made[OURS], everything[name])
            places[name] = {"at": list(at), "ours": link(OURS, at), "other": link(name, at)}
    found: dict[str, Any] = {"side": list(size), "places": places}
    for key, at in (("centre", centre(image)), ("worst", most_different(made[OURS], image))):
        found[key] = {"at": list(at), "links": {name: link(name, at) for name in everything}}
    return found


def links(crops: Mapping[str, Any]) -> list[str]:
    """All files that `write_crops` wrote, each once."""
    pairs = [place[which] for place in crops["places"].values() for which in ("ours", "other")]
    return list(dict.fromkeys([*pairs, *crops["centre"]["links"].values(), *crops["worst"]["links"].values()]))


def png(image: Tensor) -> bytes:
    """A uint8 image (3, H, W) as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(file, "PNG")
    return file.getvalue()
