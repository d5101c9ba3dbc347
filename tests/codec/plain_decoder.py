"""A second decoder of the format's integers, by docs/file-format.md: plain Python, without torch or constriction."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

WORD = 1 << 32
PRECISION = 24


class Reader:
    """The range decoder."""

    def __init__(self, payload: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(payload) // 4}I", payload))
        self.lower, self.range, self.point, self.place = 0, (1 << 64) - 1, 0, 0
        for _ in range(2):
            self.point = self.point << 32 | self._word()

    def _word(self) -> int:
        word = self.words[self.place] if self.place < len(self.words) else 0
        self.place += 1
        return word

    def value(self, edges: list[int]) -> int:
        """The number of the interval of `edges` (in units of 2^-24) that holds the point."""
        scale = self.range >> PRECISION
        quantile = ((self.point - self.lower) % (1 << 64)) // scale
        assert quantile < 1 << PRECISION, "damaged"
        low, high = 0, len(edges) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if edges[middle] <= quantile else (low, middle)
        self.lower = (self.lower + scale * edges[low]) % (1 << 64)
        self.range = scale * (edges[low + 1] - edges[low])
        if self.range < WORD:
            self.lower, self.range = self.lower << 32 & (1 << 64) - 1, self.range << 32
            self.point = self.point << 32 & (1 << 64) - 1 | self._word()
        return low


def edges_of(table: list[int]) -> list[int]:
    """The bounds of a table's values: cumulative shares of 65,536 stretched to 2^24, with 1 more for each value."""
    free, edges, total = (1 << PRECISION) - len(table), [], 0
    for i, share in enumerate(table):
        edges.append((total * free >> 16) + i)
        total += share
    return [*edges, 1 << PRECISION]


def scale_indexes(z: list[list[list[int]]], quality: int, net: dict) -> list[list[list[int]]]:
    """The index of each code value, (C, 4 h, 4 w), from z (Z, h, w) and the integers of the scale network."""
    levels = len(net["offset"])
    span = 100 // (levels - 1)
    low = min(quality // span, levels - 2)
    f = quality - low * span

    def between(table: list[list[int]]) -> list[int]:
        return [(a * (span - f) + b * f + span // 2) // span for a, b in zip(table[low], table[low + 1], strict=True)]

    first_bias, offset = between(net["first_bias"]), between(net["offset"])
    height, width, channels = len(z[0]), len(z[0][0]), len(offset)
    indexes = [[[0] * (4 * width) for _ in range(4 * height)] for _ in range(channels)]
    for y in range(height):
        for x in range(width):
            cell = [plane[y][x] for plane in z]
            inner = []
            for row, bias in zip(net["first"], first_bias, strict=True):
                total = 16 * sum(w * v for w, v in zip(row, cell, strict=True)) + bias
                inner.append(min(255, max(0, (total + 32) >> 6)))
            for i, (row, bias) in enumerate(zip(net["second"], net["second_bias"], strict=True)):
                c, place = divmod(i, 16)
                total = (sum(w * v for w, v in zip(row, inner, strict=True)) + bias + 512) >> 10
                indexes[c][4 * y + place // 4][4 * x + place % 4] = min(63, max(0, total + offset[c]))
    return indexes


def varint(data: bytes, place: int) -> tuple[int, int]:
    """A LEB128 number, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if data[place - 1] < 128:
            return value, place


def model_of(folder: Path) -> dict:
    """A saved codec's tables and integers by name, nested lists; "multiple", M; and "model", of the fingerprint."""
    data, shape = (folder / "codec.safetensors").read_bytes(), json.loads((folder / "config.json").read_text())
    del shape["format"]
    for part in shape.get("pretrained", {}).values():
        part.pop("source", None), part.pop("variant", None)
    (length,) = struct.unpack("<Q", data[:8])
    found = {"multiple": 256 if "pretrained" in shape else 64}
    found["model"] = hashlib.sha256(json.dumps(shape, sort_keys=True).encode() + data).digest()[:4]
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name.startswith(("tables.", "latent_codec.scales.")):
            begin, end = (8 + length + place for place in entry["data_offsets"])
            code, size = {"I8": ("b", 1), "I32": ("i", 4)}[entry["dtype"]]
            flat = struct.unpack(f"<{(end - begin) // size}{code}", data[begin:end])
            found[name.rpartition(".")[2]] = folded(list(flat), [n for n in entry["shape"] if n != 1])
    ends = [sum(found["r_lengths"][: i + 1]) for i in range(64)]
    found["r"] = [found["r"][end - n : end] for end, n in zip(ends, found["r_lengths"], strict=True)]
    return found


def folded(flat: list, shape: list) -> list:
    """A flat list as nested lists."""
    if len(shape) < 2:
        return flat
    step = len(flat) // shape[0]
    return [folded(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def decode(data: bytes, model: dict) -> dict:
    """Width, height, quality, z and r of a file, and whether it is grey."""
    z_tables, r_tables, multiple = model["z"], model["r"], model["multiple"]
    assert data[6:10] == model["model"]
    assert data[:4] == b"\x89DDC" and data[4] == 2 and data[5] in (0, 1, 2, 3)
    assert zlib.crc32(data[:-4]) == struct.unpack("<I", data[-4:])[0]
    quality = data[10]
    width, place = varint(data, 11)
    height, place = varint(data, place)
    words, place = varint(data, place)
    place += 4 * (data[5] & 1)
    reader = Reader(data[place : place + 4 * words])
    rows, columns = -(-height // multiple), -(-width // multiple)
    z = []
    span = 100 // (len(z_tables) - 1)
    for table in z_tables[(quality + span // 2) // span]:
        edges = edges_of(table)
        z.append([[reader.value(edges) - 127 for _ in range(columns)] for _ in range(rows)])
    indexes = scale_indexes(z, quality, model)
    r = [[[0] * (4 * columns) for _ in range(4 * rows)] for _ in indexes]
    for index, table in list(enumerate(r_tables))[1:]:  # values with index 0 are 0
        edges, half, escaped = edges_of(table), (len(table) - 2) // 2, []
        for c, plane in enumerate(indexes):
            for y, line in enumerate(plane):
                for x, found in enumerate(line):
                    if found == index:
                        value = reader.value(edges) - half
                        r[c][y][x] = value
                        if value == half + 1:
                            escaped.append((c, y, x))
        for c, y, x in escaped:
            r[c][y][x] = reader.value([v << 8 for v in range(65537)]) - 32768
    assert reader.place >= len(reader.words) and (reader.point - reader.lower) % (1 << 64) < (1 << 33) - 1, "damaged"
    return {"width": width, "height": height, "quality": quality, "grey": data[5] >= 2, "z": z, "r": r}
