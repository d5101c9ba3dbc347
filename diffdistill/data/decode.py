"""An encoded image to pixels, as a viewer shows it. This is the only place where image files are decoded.

Notable:
- the orientation that a camera recorded (in EXIF, or as AVIF and TIFF record it) is applied;
- only 8 bits per channel are read. An image with more is refused, because Pillow would cut them off silently;
- a file holds one image: animations and documents of several pages are refused;
- the size is read from the header and checked before memory is taken;
- whatever error Pillow raises for a damaged file becomes one error that names the file. The checksums of a PNG and the
  end of a JPEG are checked too. Damage that leaves a JPEG, WebP, AVIF, TIFF or BMP readable cannot be detected.

By default colour profiles are not applied: numbers are of the stored values, as in the tools that this one is compared
with. `read` takes a `Reading`, which says otherwise, and tells what was changed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffdistill.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "AVIF")
DECODING = b"orientation applied"  # to be changed whenever a file gives other pixels: caches depend on it
MAX_PIXELS = 64_000_000  # of one image
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # tags of TIFF
_HEADERS = 1 << 16  # bytes that an AVIF's own header is looked for in


class CorruptPictureError(UserError):
    """One image cannot be read; the message names it."""


@dataclass(frozen=True)
class Reading:
    """How an image becomes 8 bits of red, green and blue.

    Attributes:
        alpha: what transparent parts are put on, "white" or "black"; or "refuse".
        profiles: convert pixels with a colour profile to sRGB; CMYK is then refused if it has none.
        eight_bit: scale images of more than 8 bits to 8, rather than refuse them.
        keep_grey: give grey images one channel.
    """

    alpha: str = "white"
    profiles: bool = False
    eight_bit: bool = False
    keep_grey: bool = False

    def __post_init__(self) -> None:
        if self.alpha not in ("white", "black", "refuse"):
            raise UserError(f"alpha is {self.alpha!r}; it must be white, black or refuse")


@dataclass(frozen=True)
class Picture:
    """An image that was read.

    Attributes:
        pixels: uint8 (3, H, W), or (1, H, W) where `Reading.keep_grey` holds and the image is grey.
        notices: what was changed or dropped, each in a few words.
    """

    pixels: Tensor
    notices: tuple[str, ...]


def decode(data: bytes, what: str, formats: tuple[str, ...] = FORMATS, most_pixels: int | None = None) -> Tensor:
    """Decode an image to a uint8 Tensor of shape (3, H, W).

    Grey images and palettes become RGB, and transparent parts are put on white.

    Args:
        data: the content of the file.
        what: its name, for messages.
        formats: the formats that are read, by Pillow's names.
        most_pixels: the most pixels that are read; None for `MAX_PIXELS`.

    Raises:
        CorruptPictureError: the image is damaged, of another format or too large, has more than 8 bits per channel, or
            the file holds several images. The message names `what`.
    """
    return read(data, what, Reading(), formats, most_pixels).pixels


def read(
    data: bytes, what: str, how: Reading, formats: tuple[str, ...] = FORMATS, most_pixels: int | None = None
) -> Picture:
    """`decode` with a choice of what becomes of transparent parts, colour profiles, deep and grey images.

    Raises:
        CorruptPictureError: as for `decode`; or `how` refuses the image.
    """
    from PIL import Image, ImageOps

    from diffdistill.data import srgb

    most = MAX_PIXELS if most_pixels is None else most_pixels
    notices: list[str] = []
    try:
        with Image.open(io.BytesIO(data), formats=formats) as opened:
            picture: Any = opened
            width, height = picture.size
            if width * height > most:
                raise CorruptPictureError(f"{what} is {width}x{height}; at most {most:,} pixels are read")
            if (bits := _bits(picture, data)) > 8 and not how.eight_bit:
                hint = "" if how == Reading() else "; --eight_bit scales them to 8"
                raise CorruptPictureError(f"{what} has {bits} bits per channel; only 8 bits per channel are read{hint}")
            if picture.format == "TIFF" and bits <= 8 and 2 in tuple(picture.tag_v2.get(_SAMPLE_FORMAT, (1,))):
                raise CorruptPictureError(f"{what} has signed values; only unsigned ones are read")
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format != "MPO":  # in a camera's MPO the first frame is the image
                raise CorruptPictureError(f"{what} holds {frames} images; only files of one image are read")
            if picture.format in ("JPEG", "MPO") and not _ends(data):
                raise CorruptPictureError(f"{what} is cut short: it has no end marker")
            if picture.format == "PNG":  # decoding does not check the checksums of the pixels
                with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
                    again.verify()
            profile = picture.info.get("icc_profile")
            if bits > 8:
                picture = srgb.to_eight_bits(picture, data, bits)
                notices.append(f"{bits} bits scaled to 8")
            picture = ImageOps.exif_transpose(picture)
            if how.profiles:
                if opened.format == "PNG":
                    srgb.notice_other_colours(opened.info, data, notices)
                picture = srgb.to_srgb(picture, profile, notices)
            if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
                picture = srgb.without_alpha(picture, how.alpha, notices)
            grey = how.keep_grey and picture.mode in ("1", "L")
            mode = "L" if grey else "RGB"
            pixels = np.array(picture if picture.mode == mode else picture.convert(mode))
    except CorruptPictureError:
        raise
    except srgb.RefusedError as error:
        raise CorruptPictureError(f"{what} {error}") from error
    except Exception as error:  # decoders raise many kinds of error for a damaged file
        reason = str(error).partition(" <")[0] or type(error).__name__
        raise CorruptPictureError(f"{what} cannot be read as an image: {reason}") from error
    return Picture(torch.from_numpy(pixels[None] if grey else pixels.transpose(2, 0, 1)), tuple(notices))


def _ends(data: bytes) -> bool:
    """Whether a JPEG's scan has an end. For zeros that a broken transfer left, a decoder draws grey."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xFF:  # a fill byte
            place += 1
            continue
        if data[place + 1] == 0xDA:  # start of scan; in the pixels after it, FF D9 can only be the end
            return data.find(b"\xff\xd9", place) >= 0
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _bits(picture: Any, data: bytes) -> int:
    """Bits per channel, of formats that can have more than 8; Pillow opens most of these as if they had 8."""
    if picture.mode.startswith("F"):
        return 32
    kind = picture.format
    if kind == "PNG":
        return data[24]  # the first chunk is the header, and its ninth byte is the depth
    if kind == "TIFF":
        return int(max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if kind == "PPM":
        args = picture.tile[0].args
        if isinstance(args, tuple) and len(args) > 1:  # the largest value, if it is not 255
            return int(args[1]).bit_length()
    if kind == "AVIF":  # av1C: a marker, profile and level, then tier, high_bitdepth, twelve_bit
        place = data.find(b"av1C", 0, _HEADERS)
        flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    return 16 if picture.mode.startswith("I") else 8
