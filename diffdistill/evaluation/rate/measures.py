"""Bytes of a file, and the distances of what it decodes to from the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.rate.block_grid import SIDES, USUAL, block_grid

OURS = "ours"


class ImageCoder(Protocol):
    """What is compared: an image to a file and back."""

    def encode(self, image: Tensor, quality: int) -> bytes:
        """A uint8 image (3, H, W) to a file."""
        ...

    def decode(self, data: bytes) -> Tensor:
        """A file to a uint8 image (3, H, W)."""
        ...


@dataclass(frozen=True)
class Metric:
    """A number of a reconstruction.

    Attributes:
        option: its name on the command line.
        key: its name in rows.
        label: its name on a page.
        higher: whether more is better.
        words: what it says, in a few words.
        trained_on: how the codec's training uses it; "" where it does not.
        least_side: the smallest side of a photograph that it can be measured on, in pixels.
    """

    option: str
    key: str
    label: str
    higher: bool
    words: str
    trained_on: str = ""
    least_side: int = 1


METRICS = {
    metric.option: metric
    for metric in (
        Metric("psnr", "psnr_db", "PSNR", True, "mean squared error on a logarithmic scale, in decibels", "trained on"),
        Metric("ms_ssim", "ms_ssim", "MS-SSIM", True, "similarity of structure at five scales", "", 176),
        Metric("st_alex", "st_alex", "ST-LPIPS alex", False, "perceptual distance by AlexNet", "trained on", 64),
        Metric("st_vgg", "st_vgg", "ST-LPIPS vgg", False, "perceptual distance by VGG-16", "", 64),
        Metric(
            "kd",
            "kd",
            "patch-KD",
            False,
            "kernel distance between patches of 128 pixels of all originals and of all reconstructions, by features of "
            "MobileNetV2, with all pairs: 0 where all are the originals",
            "",
            128,
        ),
    )
}
DEFAULT = ("psnr", "ms_ssim", "st_alex", "kd")
JUDGES = ("st_vgg", "ms_ssim", "psnr", "st_alex")  # photographs are ordered by the first of these that is measured


def check_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once, in the order of `METRICS`.

    Raises:
        UserError: an unknown name, or none.
    """
    names = list(names)
    for name in names:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
    if not set(names) - {"kd"}:
        raise UserError(f"--metrics needs one that is measured on each photograph: {', '.join(list(METRICS)[:-1])}")
    return [metric for name, metric in METRICS.items() if name in names]


def check_sizes(images: Mapping[str, Tensor], metrics: Iterable[Metric]) -> None:
    """Raise UserError for a photograph that is too small for a metric, or for the block grid."""
    for name, image in images.items():
        height, width = image.shape[1:]
        for metric in metrics:
            if min(height, width) < metric.least_side:
                raise UserError(
                    f"{name} is {width}x{height} pixels, and {metric.option} needs sides of at least "
                    f"{metric.least_side}; leave one of the two out"
                )
        if max(height, width) <= USUAL:
            raise UserError(f"{name} is {width}x{height} pixels; photographs must be larger than {USUAL}")


class RateMeasure:
    """Bytes and metrics of one reconstruction.

    Args:
        metrics: those to measure; "kd", which is of all photographs together, is left to `patch_kd`.

    Raises:
        UserError: the weights of a perceptual distance are missing.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        from diffdistill.evaluation.pairs.perceptual import st_lpips
        from diffdistill.evaluation.pairs.pixels import ms_ssim, psnr

        of: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
            "psnr": lambda: psnr,
            "ms_ssim": lambda: ms_ssim,
            "st_alex": lambda: st_lpips("alex"),
            "st_vgg": lambda: st_lpips("vgg"),
        }
        self._measures = {metric.key: of[metric.option]() for metric in metrics if metric.option in of}

    def __call__(self, codec: str, image: Tensor, made: Tensor, data: bytes) -> dict[str, Any]:
        """Bytes, bits a pixel, the metrics and the block grid; None for a number that is not finite.

        Args:
            codec: its name, for messages.
            image: uint8 tensor of shape (3, H, W).
            made: what the file decodes to, of the same shape.
            data: the file.
        """
        if made.shape != image.shape:
            raise ValueError(f"{codec} decodes to the shape {tuple(made.shape)}, and it was {tuple(image.shape)}")
        found: dict[str, Any] = {"bytes": len(data), "bpp": 8 * len(data) / image[0].numel()}
        for key, measure in self._measures.items():
            found[key] = _finite(float(measure(image[None], made[None])))
        return found | {"block_grid": _finite(max(block_grid(image, made, side) for side in SIDES))}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
