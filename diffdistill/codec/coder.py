"""Integers to bytes and back: the range coder of constriction, with integer tables of probabilities.

The payload has z first, channel by channel, then r, grouped by scale index: the values of index 1 in the order of the
code (channel, row, column), then those of index 2, and so on. Values of index 0 are 0 and are not coded. A value that
its table does not cover is coded as the escape, and the escaped values of an index follow it as 16 bits each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffdistill.errors import UserError

from .bitstream import DamagedFileError

TOTAL = 1 << 16
OFFSET = 1 << 15  # of an escaped value


class RangeCoder:
    """Codes z and r by tables.

    Args:
        z_tables: (L, Z, 255) integers that sum to 65,536 in each row, for each level of quality.
        r_tables: one table of integers a scale index.

    Raises:
        UserError: the package constriction is not installed.
    """

    def __init__(self, z_tables: np.ndarray, r_tables: Sequence[np.ndarray]) -> None:
        self._stream = _constriction().stream
        self._z = [[self._model(table) for table in level] for level in z_tables]
        self._r = [self._model(table) for table in r_tables]
        # the fewest bits that z of one position can take, and a value of r of each scale index
        self._least_bits = [float(sum(_fewest(table) for table in level)) for level in z_tables]
        self._least_of = np.array([0.0, *(_fewest(table) for table in r_tables[1:])])
        self._halves = [(len(table) - 2) // 2 for table in r_tables]
        self._z_most = (z_tables.shape[2] - 1) // 2

    def _model(self, table: np.ndarray) -> Any:
        return self._stream.model.Categorical(table.astype(np.float64) / TOTAL, perfect=False)

    def encode(self, z: np.ndarray, r: np.ndarray, indexes: np.ndarray, level: int) -> bytes:
        """The payload of z (Z, h, w) and r (C, 4 h, 4 w), with scale indexes of r's shape and z's level of quality.

        Raises:
            ValueError: a value of r is not 0 where its scale index is 0.
        """
        coder = self._stream.queue.RangeEncoder()
        for channel, model in zip(z, self._z[level], strict=True):
            coder.encode((channel.ravel() + self._z_most).astype(np.int32), model)
        order, ends = _grouped(indexes.ravel(), len(self._r))
        values = r.ravel()
        if np.count_nonzero(values) > np.count_nonzero(values[order]):
            raise ValueError("a value of r with scale index 0 is not 0")
        escape = self._stream.model.Uniform(TOTAL)
        for index, begin, end in ends:
            half, part = self._halves[index], values[order[begin:end]].astype(np.int32)
            outside = np.abs(part) > half
            coder.encode(np.where(outside, 2 * half + 1, part + half).astype(np.int32), self._r[index])
            if outside.any():
                coder.encode((part[outside] + OFFSET).clip(0, TOTAL - 1).astype(np.int32), escape)
        return coder.get_compressed().astype("<u4").tobytes()

    def least_bytes(self, cells: int, level: int) -> int:
        """The fewest bytes that a payload can have, for so many positions of z of a level of quality."""
        return max(0, int(cells * self._least_bits[level] / 8) - 8)

    def check_length(self, payload: bytes) -> Callable[[np.ndarray], None]:
        """What refuses a payload as soon as the values of r, part by part, need more bits than it has.

        Returns:
            To be called with the scale indexes of each part; it raises DamagedFileError.
        """
        left = 8.0 * len(payload) + 64

        def check(indexes: np.ndarray) -> None:
            nonlocal left
            left -= float(np.bincount(indexes.ravel(), minlength=len(self._least_of)) @ self._least_of)
            if left < 0:
                raise DamagedFileError("the payload holds less than the image needs")

        return check

    def decode_z(self, payload: bytes, shape: tuple[int, int], level: int) -> tuple[np.ndarray, Any]:
        """z (Z, h, w) of a level of quality, and the decoder, which `decode_r` goes on with.

        Raises:
            DamagedFileError: the payload does not decode.
        """
        try:
            coder = self._stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype(np.uint32))
            z = [coder.decode(model, shape[0] * shape[1]) - self._z_most for model in self._z[level]]
        except (AssertionError, ValueError, KeyError) as error:
            raise DamagedFileError("the payload does not decode") from error
        return np.stack(z).reshape(-1, *shape), coder

    def decode_r(self, coder: Any, indexes: np.ndarray) -> np.ndarray:
        """r, int16, of the shape of the scale indexes.

        Raises:
            DamagedFileError: the payload does not decode, or holds more than that.
        """
        order, ends = _grouped(indexes.ravel(), len(self._r))
        parts = np.empty(len(order), np.int16)
        escape = self._stream.model.Uniform(TOTAL)
        try:
            for index, begin, end in ends:
                half = self._halves[index]
                part = coder.decode(self._r[index], end - begin) - half
                outside = part == half + 1
                if outside.any():
                    part[outside] = coder.decode(escape, int(outside.sum())) - OFFSET
                parts[begin:end] = part
        except (AssertionError, ValueError, KeyError) as error:
            raise DamagedFileError("the payload does not decode") from error
        if not coder.maybe_exhausted():
            raise DamagedFileError("the payload holds more than the image")
        values = np.zeros(indexes.size, np.int16)
        values[order] = parts
        return values.reshape(indexes.shape)


def _fewest(table: np.ndarray) -> float:
    """Bits of a table's most probable value."""
    return float(np.log2(TOTAL / table.max()))


def _grouped(indexes: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Places of values whose index is not 0, ordered by index; and each index with where it begins and ends in them."""
    narrow = indexes.astype(np.uint8, copy=False)  # of which numpy sorts by radix
    places = np.flatnonzero(narrow > 0)  # far faster of booleans
    coded = narrow[places]
    ends = np.cumsum(np.bincount(coded, minlength=count)).tolist()
    return places[np.argsort(coded, kind="stable")], [
        (index, ends[index - 1], ends[index]) for index in range(1, count) if ends[index - 1] < ends[index]
    ]


def _constriction() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise UserError("the codec needs constriction: pip install 'diffdistill[codec]'") from error
    return constriction
