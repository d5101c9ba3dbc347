"""Image files for tests, with what Pillow does not write: many bits a channel."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, form, **options)
    return stream.getvalue()


def png_of_depth(values: np.ndarray, bits: int) -> bytes:
    """A PNG of (H, W, C) written by hand: Pillow writes no 16-bit colour."""
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + values[y].astype(">u2" if bits == 16 else "u1").tobytes() for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of_depth(values: np.ndarray, bits: int) -> bytes:
    """An uncompressed RGB TIFF of (H, W, 3) written by hand."""
    height, width, _ = values.shape
    data = values.astype("<u2" if bits == 16 else "u1").tobytes()
    depths, pixels = 8 + 2 + 9 * 12 + 4, 8 + 2 + 9 * 12 + 4 + 6
    tags = (
        (256, width), (257, height), (258, depths), (259, 1), (262, 2), (273, pixels), (277, 3), (278, height),
        (279, len(data)),
    )  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    body = b"".join(struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, v) for tag, v in tags)
    return head + body + struct.pack("<I3H", 0, bits, bits, bits) + data


AVIFS = (  # one colour, 8 x 8, by libavif's encoder at more than 8 bits per channel, which Pillow cannot write
    (
        "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADybWV0YQAAAAAAAAAoaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAA"
        "AGxpYmF2aWYAAAAADnBpdG0AAAAAAAEAAAAeaWxvYwAAAABEAAABAAEAAAABAAABGgAAAB8AAAAoaWluZgAAAAAAAQAAABppbmZl"
        "AgAAAAABAABhdjAxQ29sb3IAAAAAamlwcnAAAABLaXBjbwAAABRpc3BlAAAAAAAAAAgAAAAIAAAAEHBpeGkAAAAAAwoKCgAAAAxh"
        "djFDgSBAAAAAABNjb2xybmNseAABAA0ABoAAAAAXaXBtYQAAAAAAAAABAAEEAQKDBAAAACdtZGF0EgAKCDgIv2MBDQaQMhEWQAkk"
        "kkQAAHlM2Kcefr4vIA==",
        10,
    ),
    (
        "AAAAHGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZgAAAPJtZXRhAAAAAAAAAChoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAbGli"
        "YXZpZgAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAEWAAAAHwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAA"
        "AAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAACAAAAAgAAAAQcGl4aQAAAAADDAwMAAAADGF2MUOB"
        "QGAAAAAAE2NvbHJuY2x4AAEADQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAJ21kYXQSAAoIWAi/Y0BDQaIyERZACSSSRAAA"
        "eUzYpx5+vi8g",
        12,
    ),
)
