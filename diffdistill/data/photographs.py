"""Photographs of different sizes in memory, and random crops of them for training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from diffdistill.data.loading import batches
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError

MOST_BYTES = 8 << 30  # of photographs in memory
FLAT = 3  # standard deviation, of 255, below which a crop shows next to nothing


@dataclass(frozen=True)
class PhotographData:
    """Where photographs are.

    Args:
        source: a folder, .zip, .npz or .tar of images of any size; captions are not needed.
    """

    source: str


@dataclass(frozen=True)
class Photographs:
    """Photographs in memory.

    Attributes:
        images: uint8 tensors of shape (3, H, W), of different sizes.
        names: their names.
        digest: a hash of pixels and order.
        left_out: how many are smaller than was asked for.
    """

    images: list[Tensor]
    names: list[str]
    digest: str
    left_out: int = 0


def load_photographs(path: str, least_side: int) -> Photographs:
    """Read all photographs of a folder, .zip, .npz or .tar.

    Args:
        path: where they are.
        least_side: the smallest side, in pixels, of those that are kept.

    Raises:
        UserError: there are none, one is damaged, or they take more than 8 GiB.
    """
    source = open_source(path)
    images: list[Tensor] = []
    names: list[str] = []
    size, left_out, found = 0, 0, hashlib.sha256()
    with tqdm(total=len(source), desc="photographs", unit="img", disable=len(source) < 100) as bar:
        for batch in batches(source, range(len(source)), batch_size=8, mixed=True):
            for index, image in zip(batch.indices, batch.images, strict=True):
                bar.update()
                if min(image.shape[1:]) < least_side:
                    left_out += 1
                    continue
                size += image.numel()
                if size > MOST_BYTES:
                    raise UserError(f"the photographs of {path} take more than {MOST_BYTES >> 30} GiB; take fewer")
                found.update(f"{tuple(image.shape)}".encode())
                found.update(image.contiguous().numpy().data)
                images.append(image)
                names.append(source.label(index))
    if not images:
        raise UserError(f"{path} has no photograph whose sides are at least {least_side} pixels long")
    return Photographs(images, names, found.hexdigest()[:16], left_out)


def random_crop(image: Tensor, side: int, draws: Sequence[float]) -> Tensor:
    """A square part of a photograph, as it is or reduced by up to 2, mirrored or not.

    Args:
        image: uint8 tensor of shape (3, H, W); its sides are at least `side`.
        side: of the crop, in pixels.
        draws: 8 numbers in [0, 1): whether to reduce, by how much, three places, of which the first that is not flat is
            taken. The last digits of the first say whether to mirror.

    Returns:
        uint8 tensor of shape (3, side, side).
    """
    height, width = image.shape[1:]
    reduce, scale, *places = draws
    taken = side if reduce < 0.5 else min(int(side * (1 + scale)), height, width)
    crop = image
    for up, left in zip(places[0::2], places[1::2], strict=True):
        top, begin = int(up * (height - taken + 1)), int(left * (width - taken + 1))
        crop = image[:, top : top + taken, begin : begin + taken]
        if float(crop[:, ::4, ::4].float().std()) > FLAT:
            break
    if taken != side:
        reduced = interpolate(crop[None].float(), size=(side, side), mode="bicubic", antialias=True)
        crop = reduced[0].round().clamp(0, 255).to(torch.uint8)
    return crop.flip(-1) if int(reduce * 1000) % 2 else crop
