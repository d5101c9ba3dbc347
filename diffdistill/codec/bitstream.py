"""The codec's file: a header, the coded bytes, and a checksum. It needs no torch; docs/file-format.md says it in words.

    offset  what                                         bytes
    0       0x89 "DDC"                                   4
    4       version of the format: 2                     1
    5       flags: 1 = the integers' checksum is there,
                   2 = the image is grey                 1
    6       fingerprint of the model                     4
    10      quality, 0 to 100                            1
    11      width, height, words of the payload          varints (LEB128), 1 to 5 bytes each
    ..      checksum of the integers, if flagged         4
    ..      payload                                      4 a word
    end     CRC-32 of all before it                      4

Numbers of 4 bytes are little-endian. Nothing may follow the CRC.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from diffdistill.errors import UserError

MAGIC = b"\x89DDC"
VERSION = 2
INTEGERS_CHECKED, GREY = 1, 2  # flags
MOST_PIXELS = 1 << 28  # with up to 30 bytes of memory a pixel, some 8 GB
MOST_SIDE = 1 << 15
HIGHEST_QUALITY = 100


class CodecError(UserError):
    """A file of the codec cannot be decoded; the message says why."""


class NotACodecFileError(CodecError):
    """The bytes are no file of this codec."""


class VersionError(CodecError):
    """The file is of a version of the format that this program does not read."""


class DamagedFileError(CodecError):
    """The file is cut off, or its bytes were changed."""


class OtherModelError(CodecError):
    """The file was made with another model."""


class TooLargeError(CodecError):
    """The image has more pixels than are allowed."""


@dataclass(frozen=True)
class CodedImage:
    """What a file holds.

    Attributes:
        width: in pixels.
        height: in pixels.
        quality: 0 to 100.
        model: the first four bytes of the model's fingerprint.
        payload: the entropy-coded integers, a multiple of 4 bytes.
        integers_crc: CRC-32 of the integers, or None.
        grey: whether the image has equal channels.
    """

    width: int
    height: int
    quality: int
    model: bytes
    payload: bytes
    integers_crc: int | None = None
    grey: bool = False


def to_bytes(coded: CodedImage) -> bytes:
    """The file.

    Raises:
        ValueError: the payload is no multiple of 4 bytes.

    >>> len(to_bytes(CodedImage(768, 512, 50, b"abcd", b"")))
    20
    """
    if len(coded.payload) % 4:
        raise ValueError(f"the payload has {len(coded.payload)} bytes, no multiple of 4")
    flags = (0 if coded.integers_crc is None else INTEGERS_CHECKED) | (GREY if coded.grey else 0)
    parts = [MAGIC, bytes([VERSION, flags]), coded.model, bytes([coded.quality])]
    parts += [varint(n) for n in (coded.width, coded.height, len(coded.payload) // 4)]
    if coded.integers_crc is not None:
        parts.append(struct.pack("<I", coded.integers_crc))
    whole = b"".join([*parts, coded.payload])
    return whole + struct.pack("<I", zlib.crc32(whole))


def from_bytes(data: bytes, what: str = "the file") -> CodedImage:
    """Read a file. Everything is checked before anything is decoded.

    Args:
        data: the whole file.
        what: its name, for messages.

    Raises:
        NotACodecFileError: it does not begin as such a file does.
        VersionError: another version of the format.
        DamagedFileError: it is cut off, longer than it says, or its checksum differs.
        TooLargeError: the image has more than 2^28 pixels, or a side above 32,768.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise NotACodecFileError(f"{what} is no file of this codec; such files begin with the bytes 89 44 44 43")
    if len(data) < 18:
        raise DamagedFileError(f"{what} is cut off after {len(data)} bytes, inside of its header")
    if data[4] != VERSION:
        raise VersionError(f"{what} is of version {data[4]} of the format; this program reads version {VERSION}")
    sizes, place = [], 11
    for name in ("width", "height", "words"):
        value, place = _read_varint(data, place, what, name)
        sizes.append(value)
    width, height, words = sizes
    flags = data[5]
    place += 4 * (flags & INTEGERS_CHECKED)
    expected = place + 4 * words + 4
    if len(data) != expected:
        kind = "cut off" if len(data) < expected else "longer than it says"
        raise DamagedFileError(f"{what} is {kind}: its header asks for {expected} bytes, and there are {len(data)}")
    stored, found = struct.unpack("<I", data[-4:])[0], zlib.crc32(data[:-4])
    if stored != found:
        raise DamagedFileError(f"{what} is damaged: its checksum is {found:08x} and should be {stored:08x}")
    if unknown := flags & ~(INTEGERS_CHECKED | GREY):
        raise VersionError(f"{what} has the flags {unknown:#04x}, which this program does not know")
    if data[10] > HIGHEST_QUALITY:
        raise DamagedFileError(f"{what} says quality {data[10]}; it must be in [0, {HIGHEST_QUALITY}]")
    if not width or not height:
        raise DamagedFileError(f"{what} says that its image is {width}x{height} pixels")
    check_size(width, height, what)
    crc = struct.unpack("<I", data[place - 4 : place])[0] if flags & INTEGERS_CHECKED else None
    return CodedImage(width, height, data[10], data[6:10], data[place:-4], crc, bool(flags & GREY))


def check_size(width: int, height: int, what: str) -> None:
    """Raise TooLargeError for an image that is larger than files may hold."""
    if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise TooLargeError(
            f"{what} is {width}x{height}; files hold at most {MOST_PIXELS:,} pixels and {MOST_SIDE:,} a side"
        )


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first; the high bit says that another byte follows.

    >>> varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_varint(data: bytes, place: int, what: str, name: str) -> tuple[int, int]:
    value = 0
    for i in range(5):
        if place + i >= len(data):
            raise DamagedFileError(f"{what} is cut off after {len(data)} bytes, inside of its {name}")
        byte = data[place + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            if i and not byte:
                raise DamagedFileError(f"{what} writes its {name} in more bytes than it needs")
            return value, place + i + 1
    raise DamagedFileError(f"{what} has a {name} of more than 35 bits")
