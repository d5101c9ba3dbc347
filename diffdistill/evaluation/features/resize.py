"""Resizing as evaluation tools do it, in batches; each kind equals the tool that it is named after.

    kind                 filter                                             whose
    tf1-bilinear         2 taps, corners not aligned, source index i * s    torch-fidelity, TensorFlow 1, NVlabs EDM
    clean                bicubic, antialiased, in floats, clipped           clean-fid
    bilinear-antialias   triangle, antialiased                              torchmetrics >= 1.8
    bilinear             2 taps, half-pixel centres                         pytorch-fid
    bicubic-antialias    as clean, not clipped                              NVlabs EDM2 for DINOv2
    pil-bicubic          8 bits in and out, rounded after each direction    Pillow, so open_clip
    pil-lanczos          the same with 3 lobes                              Pillow, so GigaGAN and DMD2 on COCO

Notable:
- the pil kinds use Pillow's own fixed-point arithmetic, in float64, where every product and sum is exact, so they give
  Pillow's bytes on any device. They resample rows first, as Pillow 12 and older always do. Pillow 13 resamples columns
  first where the height shrinks much more than the width, which changes levels there (not for squares);
- the first five return float32 levels in 0..255 (bicubic without clipping also a little beyond); the pil kinds return
  uint8.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = (
    "tf1-bilinear",
    "clean",
    "bilinear-antialias",
    "bilinear",
    "bicubic-antialias",
    "pil-bicubic",
    "pil-lanczos",
)
_PIL_BITS = 22  # of the fraction in Pillow's 8-bit resampling weights


def resize(images: Tensor, size: int | tuple[int, int], kind: str) -> Tensor:
    """Resize images by one of `KINDS`.

    Args:
        images: Tensor of shape (N, C, H, W): uint8, or floating-point levels in 0..255 (not for the pil kinds).
        size: height and width of the result, or one number for both.
        kind: one of `KINDS`.

    Returns:
        Tensor of shape (N, C, *size): float32 levels, or uint8 for the pil kinds.

    Raises:
        ValueError: an unknown kind, another shape, or floats for a pil kind.
    """
    if kind not in KINDS:
        raise ValueError(f"resize kind should be one of {', '.join(KINDS)}, got {kind!r}")
    if images.ndim != 4 or 0 in images.shape[2:]:
        raise ValueError(f"images should have shape (N, C, H, W), got {tuple(images.shape)}")
    height, width = (size, size) if isinstance(size, int) else size
    if kind.startswith("pil-"):
        return _pil(images, height, width, kind.removeprefix("pil-"))
    if kind == "tf1-bilinear":
        return _tf1_bilinear(images, height, width)
    x = images.to(torch.float32)
    if kind == "bilinear":
        return F.interpolate(x, size=(height, width), mode="bilinear")
    mode = "bilinear" if kind == "bilinear-antialias" else "bicubic"
    x = F.interpolate(x, size=(height, width), mode=mode, antialias=True)
    return x.clamp_(0, 255) if kind == "clean" else x


def centre_square(images: Tensor) -> Tensor:
    """The largest centred square of images: (N, C, H, W) to (N, C, S, S) with S = min(H, W), as a view.

    An odd remainder is split as in torchvision's center_crop: half of it, rounded to even.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return images[..., top : top + side, left : left + side]


def _tf1_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's resize_bilinear without aligned corners: along each row, then between rows."""
    columns, next_column, dx = _tf1_taps(x.shape[3], width, x.device)
    rows, next_row, dy = _tf1_taps(x.shape[2], height, x.device)
    if x.shape[2] > 2 * height:  # most rows do not enter the result
        x = x.index_select(2, torch.cat([rows, next_row]))
        rows, next_row = torch.arange(2 * height, device=x.device).chunk(2)
    # The axis that is indexed comes first, so that what is read lies together in memory.
    x = x.permute(0, 3, 2, 1).contiguous().to(torch.float32)
    left = x.index_select(1, columns)
    x = x.index_select(1, next_column).sub_(left).mul_(dx[:, None, None]).add_(left)
    x = x.transpose(1, 2).contiguous()
    above = x.index_select(1, rows)
    x = x.index_select(1, next_row).sub_(above).mul_(dy[:, None, None]).add_(above)
    return x.permute(0, 3, 1, 2)  # channels last in memory


def _tf1_taps(n_in: int, n_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The left tap's index, the right tap's index and the right tap's weight, each of shape (n_out,)."""
    position = torch.arange(n_out, dtype=torch.float32, device=device) * torch.tensor(n_in / n_out, dtype=torch.float32)
    left = position.long()
    return left, (left + 1).clamp_max(n_in - 1), position - left


def _pil(images: Tensor, height: int, width: int, name: str) -> Tensor:
    if images.dtype != torch.uint8:
        raise ValueError(f"pil-{name} works on uint8 images, got {images.dtype}")
    n, c, old_height, old_width = images.shape
    # One image at a time: float64 takes eight times the memory of bytes.
    done = []
    for image in images:
        if old_width != width:
            image = _pil_pass(image, _pil_weights(old_width, width, name))
        if old_height != height:
            image = _pil_pass(image.mT, _pil_weights(old_height, height, name)).mT
        done.append(image)
    return torch.stack(done).contiguous() if done else images.new_empty(0, c, height, width)


def _pil_pass(image: Tensor, weights: Tensor) -> Tensor:
    """Resample the last axis: uint8 (..., n_in) with weights (n_out, n_in) gives uint8 (..., n_out)."""
    total = image.double() @ weights.to(image.device).T  # integers below 2^53, so exact
    return total.add_(1 << (_PIL_BITS - 1)).mul_(2.0**-_PIL_BITS).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _pil_weights(n_in: int, n_out: int, name: str) -> Tensor:
    """Pillow's weights in units of 2^-22, as whole numbers in float64, of shape (n_out, n_in)."""
    reach, kernel = _FILTERS[name]
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    weights = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - reach * stretch + 0.5))
        last = min(n_in, int(centre + reach * stretch + 0.5))
        taps = [kernel((j - centre + 0.5) / stretch) for j in range(first, last)]
        total = sum(taps)
        for j, tap in enumerate(taps, first):
            fixed = tap / total * (1 << _PIL_BITS)
            weights[i, j] = math.trunc(fixed + math.copysign(0.5, fixed))
    return weights


def _bicubic(x: float) -> float:
    """The kernel of Keys 1981 with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _lanczos(x: float) -> float:
    """sinc(x) sinc(x / 3) for |x| < 3."""
    if x == 0:
        return 1.0
    if abs(x) >= 3:
        return 0.0
    return math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * math.pi * x * x / 3)


_FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {"bicubic": (2.0, _bicubic), "lanczos": (3.0, _lanczos)}
