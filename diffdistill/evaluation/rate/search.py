"""The best file of at most so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Within(NamedTuple):
    """A file that was searched for.

    Attributes:
        data: the file.
        quality: the setting that gave it.
        fits: whether it has at most as many bytes as were asked for.
    """

    data: bytes
    quality: int
    fits: bool


def best_of_branches(encode: Callable[[int], bytes], most: int, low: int, jumps: Sequence[int] = ()) -> Within:
    """`best_within`, where sizes rise with quality but at some qualities fall: the highest branch that fits.

    >>> sizes = [10, 20, 30, 15, 25, 35]  # they fall at 3
    >>> best_of_branches(lambda quality: bytes(sizes[min(quality, 5)]), 22, 0, (3,))[1:]
    (3, True)
    """
    starts = [low, *(jump for jump in jumps if jump > low)]
    ends = [*(start - 1 for start in starts[1:]), 100]
    found = [best_within(encode, most, start, end) for start, end in zip(starts, ends, strict=True)]
    fitting = [within for within in found if within.fits]
    return fitting[-1] if fitting else found[0]


def best_within(encode: Callable[[int], bytes], most: int, low: int = 0, high: int = 100) -> Within:
    """The file of the highest quality that has at most `most` bytes, by bisection.

    Sizes are taken to rise with quality. Where they do not, the file still has at most `most` bytes, though a higher
    quality may have fitted too.

    Args:
        encode: gives the file of a quality.
        most: bytes.
        low: the lowest quality.
        high: the highest quality.

    Returns:
        Where even the lowest quality takes more, its file, with `fits` False.

    >>> best_within(lambda quality: bytes(10 + quality), 35)[1:]
    (25, True)
    >>> best_within(lambda quality: bytes(10 + quality), 5)[1:]
    (0, False)
    """
    best, data = low, encode(low)
    if len(data) > most:
        return Within(data, low, False)
    above = high + 1
    while above - best > 1:
        middle = (best + above) // 2
        made = encode(middle)
        if len(made) <= most:
            best, data = middle, made
        else:
            above = middle
    return Within(data, best, True)
