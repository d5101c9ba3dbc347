"""Pictures of Pillow with many bits, a colour profile or transparent parts, to 8 bits of sRGB or grey.

Notable:
- Pillow opens colours of 16 bits as their high bytes alone. The low bytes are read by a second pass, which unpacks the
  same stream in the other byte order; so 65535 becomes 255, 0 becomes 0, and the rest is rounded to the nearest;
- a profile that changes no colour by more than two levels is sRGB, and pixels stay as they are;
- a profile that cannot be used is ignored, and this is said. CMYK cannot do without one.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

_TO_SRGB_MODES = {"RGB": "RGB", "L": "RGB", "CMYK": "RGB"}
_SAME = 2  # levels
_SRGB_GAMMA, _SRGB_CHROMATICITY = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_ORIENTATION, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x112, 262, 339


class RefusedError(Exception):
    """The picture is not read; the message says why, to stand after its name."""


def to_eight_bits(picture: Any, data: bytes, bits: int) -> Any:
    """A picture of more than 8 bits per channel, scaled to 8: each value is rounded to the nearest.

    Args:
        picture: opened by Pillow, whose pixels are not loaded yet.
        data: the file.
        bits: per channel, as the file says.

    Raises:
        RefusedError: the depth of its kind cannot be read: integers of 32 bits, or floats outside of [0, 1].
    """
    from PIL import Image

    mode = picture.mode
    if picture.format == "TIFF" and bits <= 16:
        tags = getattr(picture, "tag_v2", {})
        if 2 in tuple(tags.get(_SAMPLE_FORMAT, (1,))) or tags.get(_PHOTOMETRIC) == 0:
            raise RefusedError(f"has {bits} bits per channel that are signed, or whose zero is white; it is not read")
    if picture.format in ("PPM", "AVIF") and mode in ("RGB", "RGBA", "L", "LA"):
        picture.load()  # these decoders scale by themselves, and round
        return picture
    if mode == "F":
        values = np.asarray(picture, np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise RefusedError("has float values outside of [0, 1]; only such are scaled to 8 bits")
        made = Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    elif mode.startswith("I;16") or mode == "I" and bits <= 16:
        most = (1 << bits) - 1 if picture.format == "TIFF" else 65535  # Pillow gives values of a TIFF as they are
        made = Image.fromarray(_scaled(np.asarray(picture).astype(np.uint32), most))
    elif bits == 16 and mode in ("RGB", "RGBA"):
        made = Image.fromarray(_colours_of_16(picture, data))
    else:
        raise RefusedError(f"has {bits} bits per channel in a form ({picture.format}, {mode}) that is not scaled to 8")
    if "transparency" in picture.info:
        raise RefusedError(f"has {bits} bits per channel and a transparent colour; such images are not read")
    made.getexif()[_ORIENTATION] = picture.getexif().get(_ORIENTATION, 1)
    return made


def _scaled(values: np.ndarray, most: int) -> np.ndarray:
    return ((values.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def _colours_of_16(picture: Any, data: bytes) -> np.ndarray:
    from PIL import Image

    other = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
    high = np.asarray(picture).astype(np.uint32)
    with Image.open(io.BytesIO(data)) as again:
        tiles = []
        for tile in again.tile:
            args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            mode, _, order = str(args[0]).partition(";")
            if mode != picture.mode or order not in other:
                raise RefusedError(f"has 16 bits per channel in a form ({picture.format}, {args[0]}) that is not read")
            swapped = (f"{mode};{other[order]}", *args[1:])
            tiles.append(tile._replace(args=swapped if isinstance(tile.args, tuple) else swapped[0]))
        again.tile = tiles
        low = np.asarray(again).astype(np.uint32)
    return _scaled(high << 8 | low, 65535)


def notice_other_colours(info: Mapping[Any, Any], data: bytes, notices: list[str]) -> None:
    """Say so where a PNG says, in a way that is not used, that it is not sRGB: by cICP, or by gAMA and cHRM alone.

    Args:
        info: what Pillow read before the pixels.
        data: the file.
        notices: it is added to these.
    """
    head = data[: data.find(b"IDAT")]
    place = head.find(b"\0\0\0\4cICP")
    if place >= 0 and tuple(head[place + 8 : place + 10]) != (1, 13):  # the primaries and the transfer of sRGB
        notices.append("the chunk cICP, by which its colours are not sRGB, was ignored")
    elif "icc_profile" not in info and "srgb" not in info:
        found = info.get("chromaticity", _SRGB_CHROMATICITY)
        away = max((abs(a - b) for a, b in zip(found, _SRGB_CHROMATICITY, strict=False)), default=1.0)
        if abs(info.get("gamma", _SRGB_GAMMA) - _SRGB_GAMMA) > 0.005 or away > 0.005:
            notices.append("the chunks gAMA and cHRM, by which its colours are not sRGB, were ignored")


def to_srgb(picture: Any, profile: bytes | None, notices: list[str]) -> Any:
    """The picture in sRGB, by its profile. Grey pictures stay grey, and an alpha channel stays as it is.

    Args:
        picture: of 8 bits.
        profile: the ICC profile in the file, if there is one.
        notices: what was done is added to these.

    Raises:
        RefusedError: the picture is CMYK and has no profile that can be used.
    """
    from PIL import Image, ImageCms

    if not profile:
        if picture.mode == "CMYK":
            raise RefusedError("is CMYK without a colour profile; convert it to RGB first")
        return picture
    alpha, info = None, dict(picture.info)
    if picture.mode in ("P", "PA", "RGBA", "LA", "La", "RGBa"):
        grey = picture.mode in ("LA", "La")
        clear = "transparency" in info or picture.mode != "P"
        picture = picture.convert("RGBA" if clear else "RGB")
        alpha = picture.getchannel("A") if clear else None
        picture = picture.getchannel("R") if grey else picture.convert("RGB")
    elif picture.mode in ("1", "L", "RGB") and "transparency" in info:
        alpha = picture.convert("RGBA").getchannel("A")
    if picture.mode == "1":
        picture = picture.convert("L")
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip() or "without a name"
        convert = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), picture.mode, _TO_SRGB_MODES[picture.mode],
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        changes = picture.mode == "CMYK" or _changes(convert, picture.mode)
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError) as error:
        if picture.mode == "CMYK":
            raise RefusedError("is CMYK, and its colour profile cannot be used; convert it to RGB first") from error
        notices.append("a colour profile that cannot be used was ignored")
        changes = False
    if changes:
        made: Any = ImageCms.applyTransform(picture, convert)
        if picture.mode == "L":
            made = Image.fromarray(np.asarray(made)[..., 1])
        notices.append(f"converted from the colour profile {name!r} to sRGB")
        picture = made
    picture.info.pop("transparency", None)
    if alpha is not None:
        picture = Image.merge("LA", (picture, alpha)) if picture.mode == "L" else _with_alpha(picture, alpha)
    return picture


def _with_alpha(picture: Any, alpha: Any) -> Any:
    picture = picture.convert("RGB")
    picture.putalpha(alpha)
    return picture


def _changes(convert: Any, mode: str) -> bool:
    """Whether a transform to sRGB changes a colour of a lattice by more than `_SAME` levels."""
    from PIL import Image, ImageCms

    steps = np.linspace(0, 255, 256 if mode == "L" else 10).astype(np.uint8)
    colours = steps[None] if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    made = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), convert)).astype(int)
    return bool(np.abs(made - (colours[..., None] if mode == "L" else colours)).max() > _SAME)


def without_alpha(picture: Any, onto: str, notices: list[str]) -> Any:
    """The picture on a colour. Notices say so where a part was transparent.

    Args:
        picture: with an alpha channel, or with a transparent colour.
        onto: "white", "black" or "refuse".
        notices: what was done is added to these.

    Raises:
        RefusedError: parts are transparent, and `onto` is "refuse".
    """
    from PIL import Image

    grey = picture.mode in ("1", "L", "LA", "La")
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema()[0] < 255:
        if onto == "refuse":
            raise RefusedError("has transparent parts, which are refused; alpha can be white or black instead")
        notices.append(f"transparent parts put on {onto}")
    below = Image.new("RGBA", picture.size, "white" if onto == "refuse" else onto)
    below.alpha_composite(picture)
    return below.getchannel("R") if grey else below.convert("RGB")
