"""Damaged and made-up files: each must be refused with one of the codec's errors, quickly, and never decode.

    python bench/codec_damage.py --codec runs/codec_small/export --files 100000

Files are cut at every length, bits are flipped at every place, headers are spliced before random bytes with a right
checksum, and sizes are absurd. Each 500th has a right z of a large image, and noise in place of the rest. Made-up files
have a checksum of their integers too, since any integers are an image.
One JSON line counts the errors by kind; "decoded" and "other" must be 0.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffdistill.cli.main import guard
from diffdistill.codec import Codec, CodecError
from diffdistill.codec.bitstream import CodedImage, from_bytes, to_bytes
from diffdistill.codec.coder import RangeCoder


def main() -> None:
    """Try all files, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", type=Path, required=True, help="folder of a saved codec")
    parser.add_argument("--files", type=int, default=100_000, help="number of files")
    o = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codec(o.codec)
    draw = torch.Generator().manual_seed(0)
    image = (torch.rand(3, 64, 64, generator=draw) * 255).to(torch.uint8)
    codec.decode(codec.encode(image, 10))
    before, counts = _memory(), Counter[str]()
    slowest = {"slowest_ms": 0.0, "slowest_large_ms": 0.0}
    for kind, data in tqdm(damaged(codec, codec.encode(image, 10), o.files), total=o.files, unit="file"):
        begin = time.perf_counter()
        try:
            codec.decode(data)
            counts[f"decoded: {kind}"] += 1
        except CodecError as error:
            counts[type(error).__name__] += 1
        except Exception as error:
            counts[f"other: {type(error).__name__}: {kind}"] += 1
        name = "slowest_large_ms" if kind == "large" else "slowest_ms"
        slowest[name] = max(slowest[name], round(1000 * (time.perf_counter() - begin), 1))
    more = _memory() - before
    print(json.dumps({"files": o.files, **slowest, "more_mb": round(more, 1), **counts}))


def damaged(codec: Codec, data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """So many files of all kinds, with the name of the kind."""
    coded, draw = from_bytes(data), np.random.default_rng(0)
    made = 0
    fixed = [("cut", data[:n]) for n in range(len(data))]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        fixed.append(("flipped", bytes(flipped)))
    for item in fixed[:count]:
        made += 1
        yield item
    while made < count:
        made += 1
        noise = draw.integers(0, 256, int(draw.integers(0, 2 * len(data))), dtype=np.uint8).tobytes()
        width, height = (int(2 ** draw.uniform(0, 34)) for _ in range(2))
        kind = ("noise", "magic", "header", "absurd size", "payload")[made % 5]
        if made % 500 == 0:
            yield "large", of_large(codec, int(2 ** draw.uniform(10, 12)), int(2 ** draw.uniform(10, 12)), noise)
            continue
        content = {
            "noise": noise,
            "magic": _signed(data[:5] + b"\1" + noise),
            "header": _signed(data[:5] + b"\1" + data[6:11] + noise),
            "absurd size": to_bytes(
                CodedImage(width, height, made % 101, coded.model, noise[: len(noise) // 4 * 4], 1)
            ),
            "payload": to_bytes(CodedImage(64, 64, 10, coded.model, noise[: len(noise) // 4 * 4], 1)),
        }[kind]
        yield kind, content


def of_large(codec: Codec, width: int, height: int, noise: bytes) -> bytes:
    """A file of a large image with the most probable z, in the fewest bytes, and noise in place of r."""
    tables, z_shape = codec.z_tables[0], (-(-height // 64), -(-width // 64))
    z = np.broadcast_to((tables.argmax(1) - 127)[:, None, None], (len(tables), *z_shape)).astype(np.int32)
    nothing = np.zeros((1, 1, 1), np.int16)
    payload = RangeCoder(codec.z_tables, codec.r_tables).encode(z, nothing, nothing.astype(np.uint8), 0)
    return to_bytes(CodedImage(width, height, 0, codec.model, payload + noise[: len(noise) // 4 * 4], 1))


def _signed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


def _memory() -> float:
    """The largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(guard(main))
