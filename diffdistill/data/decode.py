"""One encoded picture to pixels, as a person is shown it: the only place where a picture's file is decoded.

Notable:
- the orientation that a camera wrote down (EXIF, or AVIF's and TIFF's own) is applied;
- only 8 bits a channel are read: what has more is refused, because Pillow would cut it off without a word;
- a file holds one picture: animations and documents of several pages are refused;
- sizes are read from the header and checked before memory is taken;
- whatever a damaged file makes Pillow raise becomes one error that names the file; a PNG's checksums and a JPEG's end
  are looked at too. Damage inside a JPEG, WebP, AVIF, TIFF or BMP that leaves it readable cannot be seen.

Colour profiles are not applied: a number is of the stored values, as it is in the tools this one is compared with.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF")
DECODING = b"orientation applied"  # changed wherever a file gives other pixels than before: caches go by it
MAX_PIXELS = 64_000_000  # of one picture
_BITS_PER_SAMPLE = 258  # TIFF's tag
_HEADERS = 1 << 16  # bytes that an AVIF's own header is looked for in


class CorruptPictureError(UserError):
    """One picture cannot be read; the message names it."""


def decode(data: bytes, what: str, formats: tuple[str, ...] = FORMATS, most_pixels: int | None = None) -> Tensor:
    """An encoded picture to a uint8 Tensor of shape (3, H, W); grey and palettes become RGB, alpha goes onto white.

    Args:
        data: the file's content.
        what: its name, for messages.
        formats: those read, by Pillow's names.
        most_pixels: refused beyond this many; None for `MAX_PIXELS`.

    Raises:
        CorruptPictureError: naming `what`: damaged, another format, too large, more than 8 bits a channel, or several
            pictures in one.
    """
    from PIL import Image, ImageOps

    most = MAX_PIXELS if most_pixels is None else most_pixels
    try:
        with Image.open(io.BytesIO(data), formats=formats) as opened:
            picture: Any = opened
            width, height = picture.size
            if width * height > most:
                raise CorruptPictureError(f"{what} is {width}x{height}; at most {most:,} pixels are read")
            if (bits := _bits(picture, data)) > 8:
                raise CorruptPictureError(f"{what} has {bits} bits a channel; only 8 bits a channel are read")
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # of a camera's MPO the first one is the picture
                raise CorruptPictureError(f"{what} holds {frames} pictures; one a file is read")
            if picture.format in ("JPEG", "MPO") and not _ends(data):
                raise CorruptPictureError(f"{what} is cut short: it has no end marker")
            if picture.format == "PNG":  # decoding it does not look at the checksums of its pixels
                with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
                    again.verify()
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                white.alpha_composite(picture)
                picture = white
            pixels = np.array(picture.convert("RGB"))
    except CorruptPictureError:
        raise
    except Exception as error:  # a damaged file makes a decoder raise whatever it met first
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise CorruptPictureError(f"{what} cannot be read as a picture: {reason}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _ends(data: bytes) -> bool:
    """Whether a JPEG's scan has an end: a decoder draws grey for what a broken transfer left as zeros."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xFF:  # a fill byte
            place += 1
            continue
        if data[place + 1] == 0xDA:  # start of scan; in the pixels after it, FF D9 is the end and nothing else
            return data.find(b"\xff\xd9", place) >= 0
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _bits(picture: Any, data: bytes) -> int:
    """Bits a channel, where they could be more than 8; Pillow opens most of these as if they had 8."""
    if picture.mode.startswith("F"):
        return 32
    kind = picture.format
    if kind == "PNG":
        return data[24]  # the first chunk is the header, and its ninth byte the depth
    if kind == "TIFF":
        return int(max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if kind == "PPM":
        args = picture.tile[0].args
        if isinstance(args, tuple) and len(args) > 1:  # the largest value stands there where it is not 255
            return int(args[1]).bit_length()
    if kind == "AVIF":  # av1C: a marker, profile and level, then tier, high_bitdepth, twelve_bit
        place = data.find(b"av1C", 0, _HEADERS)
        flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 16 if picture.mode.startswith("I") else 8
