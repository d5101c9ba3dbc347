"""How far a reconstruction is from its original: PSNR and MS-SSIM, and the mean of any such measure over images.

Notable:
- every measure gives one value an image; the number reported is the mean of those over images. The PSNR of the mean
  squared error over all images, which torchmetrics reports, is a different and lower number;
- arithmetic is float64: MS-SSIM subtracts squares that nearly cancel in flat parts of an image;
- floats and bytes are measured as they are. `quantise` rounds floats to 8 bits first, which is what a PNG file would
  hold and what most codec tables mean; the protocol says which of the two was done;
- values are kept, not sums, so processes and batches change the last digit at most.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.evaluation.features.base import to_uint8
from diffdistill.evaluation.features.feature_rows import FeatureRows

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
CONVENTIONS = ("per-channel", "torchmetrics")
_WINDOW, _SIGMA = 11, 1.5
LEAST_SIDE = _WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
_C1, _C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def unit_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both images of a pair as float64 in [0, 1].

    Args:
        x: Tensor of shape (N, C, H, W), uint8 or floating point in [0, 1].
        y: the same, of the same shape; the dtype may be the other one.

    Raises:
        ValueError: wrong or different shapes, another dtype, NaN, or floating-point values outside [0, 1].
    """
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"pairs should have one shape (N, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}")
    if 0 in x.shape[1:]:
        raise ValueError(f"images should hold pixels, got shape {tuple(x.shape)}")
    return _unit(x, "x"), _unit(y, "y")


def mean_squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over channels and pixels of (x - y)^2, values in [0, 1]; shapes and errors as of `psnr`."""
    x, y = unit_pair(x, y)
    return (x - y).square().mean((1, 2, 3))


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise ratio of each pair, -10 log10 of the mean squared error of all its channels and pixels.

    Args:
        x: Tensor of shape (N, C, H, W), uint8 or floating point in [0, 1]; the peak is 255, or 1.
        y: the other image of each pair.

    Returns:
        Tensor of shape (N,), float64, in dB; infinite where both images are equal.

    Raises:
        ValueError: wrong or different shapes, another dtype, NaN, or floating-point values outside [0, 1].

    >>> white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    >>> round(float(psnr(white, white - 1)), 4)
    48.1308
    """
    return _decibels(mean_squared_error(x, y))


def ms_ssim(x: Tensor, y: Tensor, convention: str = "per-channel") -> Tensor:
    """Multi-scale structural similarity of each pair (Wang, Simoncelli and Bovik 2003, eq. 7), five scales.

    prod_j (mean of cs_j)^w_j over scales 1 to 4, times (mean of l_5 cs_5)^w_5, with

        l = (2 mx my + C1) / (mx^2 + my^2 + C1),   cs = (2 sxy + C2) / (sx^2 + sy^2 + C2)

    from moments under an 11 x 11 Gaussian window of standard deviation 1.5. From each scale to the next, images are
    halved by taking means of 2 x 2 pixels, and an odd row or column is left out. A negative mean counts as 0. Two
    conventions are in use for channels and borders (for white noise of 177 pixels, more noise added: .718 and .721):

        per-channel     windows lie inside the image, each channel by itself, then the mean over channels:
                        pytorch-msssim (CompressAI) and TensorFlow, where halving meets no odd side
        torchmetrics    means over all channels at once, and at the last scale windows reach over the border, beyond
                        which the image is reflected

    Args:
        x: Tensor of shape (N, C, H, W), uint8 or floating point in [0, 1]; sides at least 176.
        y: the other image of each pair.
        convention: one of `CONVENTIONS`.

    Returns:
        Tensor of shape (N,), float64, in [0, 1]; 1 where both images are equal.

    Raises:
        ValueError: an image too small for five scales, an unknown choice, and as `psnr`.

    >>> x = torch.rand(1, 3, 176, 200)
    >>> ms_ssim(x, x).tolist()
    [1.0]
    """
    _check_convention(convention)
    x, y = unit_pair(x, y)
    if min(x.shape[2:]) < LEAST_SIDE:
        size = f"{x.shape[3]}x{x.shape[2]}"
        raise ValueError(f"MS-SSIM at five scales needs images of at least {LEAST_SIDE} pixels a side, got {size}")
    together = convention == "torchmetrics"
    value = torch.ones(len(x), 1 if together else x.shape[1], dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        last = scale == len(SCALE_WEIGHTS) - 1
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        if last and together:
            x, y = (F.pad(image, (_WINDOW // 2,) * 4, mode="reflect") for image in (x, y))
        luminance, contrast = _similarities(x, y)
        mean = (luminance * contrast if last else contrast).mean((2, 3))
        value = value * (mean.mean(1, keepdim=True) if together else mean).clamp_min(0) ** weight
    return value.mean(1)


class PairScore(NamedTuple):
    """A mean over images.

    Attributes:
        mean: of one value an image.
        standard_error: of the mean, for independent images; None for one image, or where the mean is infinite.
        n: number of images.
    """

    mean: float
    standard_error: float | None
    n: int


class PairMean:
    """The mean over images of any measure of pairs, which come batch by batch.

    Args:
        measure: maps two Tensors of shape (N, C, H, W) to one of shape (N,), such as `ms_ssim` or what `lpips` builds.
        protocol: what the number has to carry; by default the measure's own. Whether images were rounded to 8 bits is
            added to it.
        quantise: round floating-point images to 8 bits before they are measured.

    >>> mean = PairMean(mean_squared_error, {"metric": "mse"})
    >>> for grey in (0.1, 0.3):
    ...     mean.update(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), grey))
    >>> round(mean.compute().mean, 6), round(mean.compute().standard_error, 6), mean.compute().n
    (0.05, 0.04, 2)
    """

    def __init__(
        self,
        measure: Callable[[Tensor, Tensor], Tensor],
        protocol: Mapping[str, Any] | None = None,
        quantise: bool = False,
    ) -> None:
        if protocol is None:
            protocol = getattr(measure, "protocol", {})
        self.measure = measure
        self.quantise = quantise
        self.protocol: dict[str, Any] = {**protocol, "quantisation": "uint8-round" if quantise else "none"}
        self._kept = FeatureRows(1, self.protocol, "pairs")

    @property
    def values(self) -> Tensor:
        """Tensor of shape (n,), float64: one value for each image, in the order of the updates."""
        return self._kept.features[:, 0].double()

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in pairs: two Tensors of shape (N, C, H, W), uint8 or floating point in [0, 1].

        Raises:
            ValueError: what the measure raises, or a value that is not finite. Nothing is taken in then.
        """
        if self.quantise:
            x, y = to_uint8(x), to_uint8(y)
        self._kept.update(self.measure(x, y)[:, None])

    def __call__(self, x: Tensor, y: Tensor) -> PairScore:
        """Take in pairs, and return the mean over these alone; as `update`."""
        alone = copy.copy(self)
        alone.reset()
        alone.update(x, y)
        self.merge_state(alone)
        return alone.compute()

    def compute(self) -> PairScore:
        """The mean over images so far. Raises ValueError without images."""
        values = self.values
        n = len(values)
        if not n:
            raise ValueError("needs at least 1 pair of images, got 0")
        mean = float(values.mean())
        known = n > 1 and math.isfinite(mean)
        return PairScore(mean, float(values.std() / n**0.5) if known else None, n)

    def merge_state(self, other: PairMean) -> None:
        """Take in the images of another mean. Raises UserError where it was measured under another protocol."""
        self._kept.merge(other._kept)

    def reset(self) -> None:
        """Forget all images."""
        self._kept = self._kept.empty()

    def all_reduce(self) -> Self:
        """The mean over the images of all processes; this one stays as it is.

        Images are in their own order if process r of w took images r, r + w, r + 2w, ...

        Raises:
            UserError: the processes measure under different protocols; on all of them.
        """
        total = copy.copy(self)
        total._kept = self._kept.all_reduce()
        return total


class PSNR(PairMean):
    """The mean of PSNRs, in dB; twin of `psnr`. It is infinite where one pair is equal, and `values` shows which.


    Args:
        quantise: round floating-point images to 8 bits before they are measured.
    """

    def __init__(self, quantise: bool = False) -> None:
        super().__init__(mean_squared_error, {"metric": "psnr", "mean": "over-images"}, quantise)

    @property
    def values(self) -> Tensor:
        """Tensor of shape (n,), float64: the PSNR of each image, in the order of the updates."""
        return _decibels(super().values)


class MSSSIM(PairMean):
    """The mean of MS-SSIMs; twin of `ms_ssim`.

    Args:
        convention: one of `CONVENTIONS`.
        quantise: round floating-point images to 8 bits before they are measured.
    """

    def __init__(self, convention: str = "per-channel", quantise: bool = False) -> None:
        _check_convention(convention)

        def measure(x: Tensor, y: Tensor) -> Tensor:
            return ms_ssim(x, y, convention)

        super().__init__(measure, {"metric": "ms-ssim", "mean": "over-images", "convention": convention}, quantise)


def _unit(images: Tensor, name: str) -> Tensor:
    if images.dtype == torch.uint8:
        return images.double() / 255
    if not images.is_floating_point():
        raise ValueError(f"{name} should be uint8 or floating point in [0, 1], got {images.dtype}")
    images = images.detach().double()
    if images.numel():
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(f"{name} should lie in [0, 1], got values from {float(low):.4g} to {float(high):.4g}")
    return images


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention should be one of {', '.join(CONVENTIONS)}, got {convention!r}")


def _decibels(mse: Tensor) -> Tensor:
    return -10 * mse.log10()


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """l and cs of (N, C, H, W), each of shape (N, C, H - 10, W - 10)."""
    n, c, h, w = x.shape
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=x.device) - _WINDOW // 2
    taps = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    taps /= taps.sum()

    def smooth(values: Tensor) -> Tensor:
        columns = F.conv2d(values.reshape(n * c, 1, h, w), taps.view(1, 1, -1, 1))
        return F.conv2d(columns, taps.view(1, 1, 1, -1)).unflatten(0, (n, c)).squeeze(2)

    mean_x, mean_y = smooth(x), smooth(y)
    product = mean_x * mean_y
    squares = mean_x.square() + mean_y.square()
    covariance = smooth(x * y) - product
    variances = smooth(x.square() + y.square()) - squares
    return (2 * product + _C1) / (squares + _C1), (2 * covariance + _C2) / (variances + _C2)
