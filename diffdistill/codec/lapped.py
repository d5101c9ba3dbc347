"""A lapped orthogonal transform of images: the linear part of the codec, which has no block edges.

    image (3, H, W) --16 x 16 blocks, 32-tap windows, 3 colours--> coefficients (C, H/16, W/16) and back

Each block of 16 pixels is analysed through a window of 32, and the windows of neighbours overlap by half (Malvar and
Staelin 1989). The even and odd rows of the DCT are combined, and then rotated to decorrelate a process whose neighbours
correlate by `correlation`. Two dimensions are separable; colours are mixed by a fixed orthonormal matrix.

Notable:
- borders are extended by symmetry. The coefficients outside of the image are then those of the border blocks up to a
  known sign, so the decoder needs no further bits for them;
- with all 768 channels the inverse is exact. A codec keeps the channels with the largest variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 16
_COLOURS = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]], dtype=torch.float64)
COLOURS = _COLOURS / _COLOURS.norm(dim=1, keepdim=True)


def lapped_basis(block: int = BLOCK, correlation: float = 0.95) -> tuple[Tensor, Tensor]:
    """The windows of a one-dimensional lapped transform, and the symmetry of each.

    Args:
        block: M, the number of samples of a block, even.
        correlation: of neighbouring samples, for which the rows are decorrelated.

    Returns:
        The windows (M, 2 M), float64, with the largest variance first, and M signs: 1 for a symmetric window, -1 for an
        antisymmetric one.

    >>> basis, signs = lapped_basis(4)
    >>> bool(torch.allclose(basis @ basis.T, torch.eye(4, dtype=torch.float64)))
    True
    """
    k, n = torch.arange(block, dtype=torch.float64)[:, None], torch.arange(block, dtype=torch.float64)
    dct = math.sqrt(2 / block) * torch.cos(math.pi * (2 * n + 1) * k / (2 * block))
    dct[0] /= math.sqrt(2)
    difference = dct[0::2] - dct[1::2]
    mirrored = difference.flip(1)
    halves = torch.cat([difference, mirrored], 1) / 2, torch.cat([difference, -mirrored], 1) / 2
    places = torch.arange(2 * block, dtype=torch.float64)
    covariance = correlation ** (places[:, None] - places).abs()
    rows = []
    for rows_of_kind, sign in zip(halves, (1, -1), strict=True):
        variances, rotation = torch.linalg.eigh(rows_of_kind @ covariance @ rows_of_kind.T)
        windows = rotation.T @ rows_of_kind
        largest = windows[:, :block].abs().argmax(1, keepdim=True)  # of one half: in both, mirrored taps tie
        windows = windows * torch.where(windows.gather(1, largest) < 0, -1.0, 1.0)
        rows += [(float(variance), window, sign) for variance, window in zip(variances, windows, strict=True)]
    rows.sort(key=lambda row: -row[0])
    return torch.stack([window for _, window, _ in rows]), torch.tensor([sign for *_, sign in rows])


class LappedTransform(nn.Module):
    """Some channels of the two-dimensional transform, and its adjoint.

    Args:
        channels: numbers of the channels that are kept, in [0, 768): 256 colour + 16 row + column.
    """

    channels: Tensor
    _filters: Tensor
    _signs_x: Tensor
    _signs_y: Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        basis, signs = lapped_basis()
        kept = torch.as_tensor(channels, dtype=torch.long)
        colour, row, column = kept // BLOCK**2, kept // BLOCK % BLOCK, kept % BLOCK
        filters = torch.einsum("nc,ny,nx->ncyx", COLOURS[colour], basis[row], basis[column])
        self.register_buffer("channels", kept.to(torch.int32))
        self.register_buffer("_filters", filters.float(), persistent=False)
        self.register_buffer("_signs_x", signs[column].float()[:, None, None], persistent=False)
        self.register_buffer("_signs_y", signs[row].float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), whose sides are multiples of 16, to coefficients (B, C, H/16, W/16)."""
        half = BLOCK // 2
        x = torch.cat([images[..., :half].flip(-1), images, images[..., -half:].flip(-1)], -1)
        x = torch.cat([x[..., :half, :].flip(-2), x, x[..., -half:, :].flip(-2)], -2)
        return F.conv2d(x, self._filters, stride=BLOCK)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Coefficients (B, C, h, w) to images (B, 3, 16 h, 16 w)."""
        y, crop = coefficients, BLOCK // 2
        y = torch.cat([y[..., :1] * self._signs_x, y, y[..., -1:] * self._signs_x], -1)
        y = torch.cat([y[..., :1, :] * self._signs_y, y, y[..., -1:, :] * self._signs_y], -2)
        return _overlapped(y, self._filters)[..., crop:-crop, crop:-crop]


def _overlapped(y: Tensor, filters: Tensor) -> Tensor:
    """`F.conv_transpose2d(y, filters, stride=BLOCK)` but for its outermost blocks, four times as fast.

    Each window of 32 pixels is two halves a side. Halves are made by one matrix product, and those that fall on one
    block are added.

    Args:
        y: (B, C, h, w).
        filters: (C, 3, 32, 32).

    Returns:
        (B, 3, 16 (h - 1), 16 (w - 1)).
    """
    weight = filters.unflatten(3, (2, BLOCK)).unflatten(2, (2, BLOCK)).permute(2, 4, 1, 3, 5, 0).flatten(2, 4)
    total: Tensor | None = None
    for a in (0, 1):
        for b in (0, 1):
            part = y[..., 1 - a : y.shape[-2] - a, 1 - b : y.shape[-1] - b]
            made = F.conv2d(part, weight[a, b][..., None, None])
            total = made if total is None else total + made
    assert total is not None
    return F.pixel_shuffle(total, BLOCK)


def channels_by_variance(images: Tensor, count: int) -> tuple[list[int], Tensor]:
    """The channels that have the largest variance on images.

    Args:
        images: (B, 3, H, W) in [-0.5, 0.5]; sides are multiples of 16.
        count: number of channels, C.

    Returns:
        The numbers of the channels, with the largest variance first, and the C root mean squares of their coefficients.
    """
    every = LappedTransform(range(3 * BLOCK**2)).to(images.device)
    power = torch.stack([every(part).double().square().mean((0, 2, 3)) for part in images.split(32)]).mean(0)
    order = power.argsort(descending=True, stable=True)[:count]
    return order.tolist(), power[order].sqrt().float()
