"""The entropy model on codes of any size, in strips of rows: only what is kept takes memory for the whole image.

Notable:
- every value is settled once. In each of the four steps a strip sees one row of its neighbours, as they were before it;
- a code of one strip (up to four million pixels) goes through the same operations as in training;
- scale indexes are integers that are computed position by position, so strips cannot change them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .latent_codec import LatentCodec, quadrants

CELLS = 1 << 14  # positions of the code in a strip, but at least four rows; tensors of 320 channels are made of them
INDEX_CELLS = 1 << 11  # the same for scale indexes; few, so that a damaged file is found out early


def strips(rows: int, width: int, cells: int = CELLS) -> list[tuple[int, int]]:
    """Where strips begin and end, in rows of z.

    Args:
        rows: of z.
        width: of z; a row of z has 16 positions of the code for each.
        cells: positions of the code in a strip.

    >>> strips(5, 512)
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, cells // (16 * width))
    return [(begin, min(rows, begin + step)) for begin in range(0, rows, step)]


def hyper_latent(codec: LatentCodec, scaled: Tensor, quality: Tensor, cells: int = CELLS) -> Tensor:
    """`LatentCodec.hyper_latent` of a code (1, C, h, w), with a halo of four rows, which is all that it sees."""
    found = []
    for begin, end in strips(scaled.shape[2] // 4, scaled.shape[3] // 4, cells):
        above = min(begin, 1)
        z = codec.hyper_latent(scaled[:, :, 4 * (begin - above) : 4 * (end + 1)], quality)
        found.append(z[:, :, above : above + end - begin])
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def scale_indexes(
    codec: LatentCodec, z: Tensor, quality: Tensor, check: Callable[[np.ndarray], None] | None = None
) -> np.ndarray:
    """The scale indexes (C, 4 h, 4 w), uint8, of z (1, Z, h, w).

    Args:
        codec: the entropy model.
        z: integers.
        quality: (1,).
        check: is called with the indexes of each strip; what it raises ends the work early.
    """
    found = []
    for begin, end in strips(z.shape[2], z.shape[3], INDEX_CELLS):
        found.append(codec.scales(z[:, :, begin:end], quality)[0].to(torch.uint8).cpu().numpy())
        if check is not None:
            check(found[-1])
    return found[0] if len(found) == 1 else np.concatenate(found, 1)


def settle(
    codec: LatentCodec,
    features: Tensor,
    r: np.ndarray | None,
    y: Tensor | None,
    indexes: np.ndarray | None = None,
    cells: int = CELLS,
) -> tuple[Tensor, Tensor | None]:
    """`LatentCodec.settle` of one image, in strips.

    Args:
        codec: the entropy model.
        features: of z, (1, width, h, w).
        r: residuals (C, h, w), integers, to decode; None to encode.
        y: the scaled code (1, C, h, w) to encode; None to decode.
        indexes: with y, the scale indexes (C, h, w).
        cells: positions of the code in a strip.

    Returns:
        The code as the decoder has it, scaled, (1, C, h, w); and its means, where it encodes.
    """
    assert (y is not None and indexes is not None) or r is not None
    shape = y.shape if y is not None else (1, *np.shape(r))  # type: ignore[arg-type]
    parts = [(4 * begin, 4 * end) for begin, end in strips(shape[2] // 4, shape[3] // 4, cells)]
    if len(parts) == 1:
        if r is not None:
            return codec.settle(features, _tensor(r, features.device), None)
        return codec.settle(features, None, y, _coded(indexes, features.device))
    settled = torch.zeros(shape, device=features.device).contiguous(memory_format=torch.channels_last)
    means = None if y is None else torch.zeros_like(settled)
    height = shape[2]
    for step in range(4):
        above = settled[:, :, :0]  # the row before the strip, as it was before this step
        for begin, end in parts:
            seen = slice(begin - above.shape[2], min(height, end + 1))
            before = torch.cat([above, settled[:, :, begin : seen.stop]], 2)
            inner = codec.context_of(features[:, :, seen], before, step)[:, :, above.shape[2] :][:, :, : end - begin]
            above = settled[:, :, end - 1 : end].clone()
            mask = quadrants(shape[1], end - begin, shape[3], features.device)[step]
            if r is not None:
                given, coded = _tensor(r[:, begin:end], features.device), None
            else:
                given, coded = y[:, :, begin:end], _coded(indexes[:, begin:end], features.device)  # type: ignore[index]
            change, mean = codec.settle_step(inner, given, mask, coded)
            settled[:, :, begin:end] += mask * change
            if means is not None:
                means[:, :, begin:end] += mask * mean
    return settled, means


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values[None])).to(device).float()


def _coded(indexes: np.ndarray | None, device: torch.device) -> Tensor:
    assert indexes is not None
    return _tensor(indexes > 0, device)
