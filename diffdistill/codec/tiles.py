"""The pixel networks on images of any size, one tile after another, so that memory is that of a tile.

    encode   tiles of 1024 pixels with a halo of 128, which is cut off: the coefficients are those of the whole image
    decode   tiles of at most 1024 pixels that overlap by 128 or more, blended by weights that fall linearly

The encoder's halo covers all that its convolutions see, so that only rounding differs. The decoder sees some 130 pixels
far, and a denoiser sees its whole tile, so tiles are blended: the outer 32 pixels of an overlap are those of one tile
alone, and the ramp lies between. Without a denoiser this differs from the whole image by one level of 255 at most, in
a few of ten thousand values. Pretrained networks have attention, so neither holds for them: they see their tile.
An image that fits into one tile is processed at once. The format knows no tiles.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError

UNIT = 64  # pixels; tiles begin and end at its multiples
TILE, LEAST_TILE = 1024, 512  # pixels
OVERLAP = 128  # pixels, at least
MARGIN = 32  # pixels at each end of an overlap that are not blended
HALO = 128  # pixels that a coefficient depends on beyond its block, rounded up


class PixelNetwork(Protocol):
    """What a codec's networks have, whether pretrained or not; see `CodecNetwork`."""

    stride: int
    multiple: int

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to coefficients (B, C, H / stride, W / stride)."""

    def decode(self, y: Tensor, quality: Tensor, indexes: Tensor) -> Tensor:
        """Coefficients and scale indexes (B, C, h, w), and quality (B,), to images (B, 3, H, W)."""


def check_tile(tile: int) -> None:
    """Raise UserError for a side of tiles that is no multiple of 64 or below 512."""
    if tile % UNIT or tile < LEAST_TILE:
        raise UserError(f"tile is {tile}; it must be a multiple of {UNIT}, at least {LEAST_TILE}")


def padded(side: int, multiple: int = UNIT) -> int:
    """A side, rounded up to the next multiple of so many pixels.

    >>> padded(100)
    128
    """
    return -(-side // multiple) * multiple


def encode(network: PixelNetwork, image: Tensor, device: torch.device, tile: int = TILE) -> Tensor:
    """The coefficients of an image, whose last row and column are repeated up to what the network needs.

    Args:
        network: the codec's networks.
        image: uint8 (3, H, W), on any device.
        device: where the network is.
        tile: side of the tiles without their halo, in pixels, a multiple of 64.

    Returns:
        (1, C, h, w) on the network's device, with h = ceil(H / multiple) multiple / stride.
    """
    step = network.stride
    height, width = (padded(side, network.multiple) for side in image.shape[1:])
    made = None
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y, x = _haloed(top, tile, height), _haloed(left, tile, width)
            part = _cut(image, y, x).to(device).float()[None] / 255
            found = network.encode(part)
            if len(range(0, height, tile)) == len(range(0, width, tile)) == 1:
                return found
            if made is None:
                made = found.new_empty(1, found.shape[1], height // step, width // step)
            into = made[..., top // step : (top + tile) // step, left // step : (left + tile) // step]
            y0, x0 = (top - y[0]) // step, (left - x[0]) // step
            into.copy_(found[..., y0 : y0 + into.shape[2], x0 : x0 + into.shape[3]])
    assert made is not None
    return made


def _haloed(begin: int, tile: int, side: int) -> tuple[int, int]:
    return max(0, begin - HALO), min(side, begin + tile + HALO)


def _cut(image: Tensor, y: tuple[int, int], x: tuple[int, int]) -> Tensor:
    """A part of the image; beyond its end the last row and column are repeated."""
    height, width = image.shape[1:]
    top, left = min(y[0], height - 1), min(x[0], width - 1)
    rows = torch.arange(*y, device=image.device).clamp(max=height - 1) - top
    columns = torch.arange(*x, device=image.device).clamp(max=width - 1) - left
    return image[:, top : y[1], left : x[1]].index_select(1, rows).index_select(2, columns)


def decode(
    network: PixelNetwork,
    y: Tensor,
    quality: Tensor,
    indexes: np.ndarray,
    size: tuple[int, int],
    grey: bool = False,
    tile: int = TILE,
) -> Tensor:
    """The image of coefficients.

    Args:
        network: the codec's networks.
        y: coefficients (1, C, h, w).
        quality: (1,) in [0, 100].
        indexes: scale indexes (C, h, w), integers.
        size: height and width of the image in pixels.
        grey: give the three channels their mean.
        tile: side of the largest tile in pixels, a multiple of 64.

    Returns:
        uint8 (3, *size) on the CPU.
    """

    def pixels(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        cut = slice(*(x // network.stride for x in rows)), slice(*(x // network.stride for x in columns))
        scales = torch.from_numpy(np.ascontiguousarray(indexes[None, :, *cut])).to(y.device).float()
        whole = scales.shape == y.shape
        return network.decode(y if whole else y[:, :, *cut].contiguous(), quality, scales)[0]

    rows, columns = (spans(side * network.stride, tile) for side in y.shape[2:])
    if len(rows) == len(columns) == 1:
        return _as_bytes(pixels(rows[0], columns[0])[:, : size[0], : size[1]], grey)
    made = torch.empty(3, *size, dtype=torch.uint8)
    weights = [[w.to(y.device) for w in blend_weights(spans_)] for spans_ in (rows, columns)]
    below = torch.zeros(3, 0, columns[-1][1], device=y.device)  # what the tiles so far add to the next ones
    for i, (top, bottom) in enumerate(rows):
        band = torch.zeros(3, bottom - top, columns[-1][1], device=y.device)
        band[:, : below.shape[1]] = below
        for j, (left, right) in enumerate(columns):
            part = pixels((top, bottom), (left, right)).float()
            band[:, :, left:right] += part.mul_(weights[0][i][:, None]).mul_(weights[1][j])
        ready = (rows[i + 1][0] if i + 1 < len(rows) else bottom) - top
        below = band[:, ready:].clone()
        into = made[:, top : top + ready]
        into.copy_(_as_bytes(band[:, : into.shape[1], : size[1]], grey))
    return made


def spans(side: int, tile: int = TILE) -> list[tuple[int, int]]:
    """Where tiles begin and end: as few as are needed, of one size, with overlaps of at least `OVERLAP`.

    Args:
        side: of the image in pixels, a multiple of 64.
        tile: the longest tile, a multiple of 64.

    >>> spans(1024), spans(1152), spans(2048)
    ([(0, 1024)], [(0, 640), (512, 1152)], [(0, 768), (640, 1408), (1280, 2048)])
    """
    count = max(1, -(-(side - OVERLAP) // (tile - OVERLAP)))
    length = padded(-(-(side + (count - 1) * OVERLAP) // count))
    begins = [i * (side - length) // max(1, count - 1) // UNIT * UNIT for i in range(count)]
    return [(begin, begin + length) for begin in begins]


def blend_weights(tiles: list[tuple[int, int]]) -> list[Tensor]:
    """The weight of each pixel of each tile along one side; at each pixel the weights add up to one.

    >>> [w.tolist()[::320] for w in blend_weights([(0, 640), (512, 1152)])]
    [[1.0, 1.0], [0.0, 1.0]]
    """
    found = [torch.ones(end - begin) for begin, end in tiles]
    for i in range(len(tiles) - 1):
        (first, end), (begin, _) = tiles[i], tiles[i + 1]
        places = torch.arange(end - begin) + 0.5
        ramp = OVERLAP - 2 * MARGIN
        rising = ((places - (end - begin) / 2) / ramp + 0.5).clamp(0, 1)
        found[i][begin - first :] *= 1 - rising
        found[i + 1][: end - begin] *= rising
    return found


def _as_bytes(pixels: Tensor, grey: bool) -> Tensor:
    if grey:
        pixels = pixels.float().mean(0, keepdim=True).expand(3, -1, -1)
    return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
