"""What `read` makes of transparent parts, colour profiles, deep and grey images, and what it says of it."""

import base64
import struct
import zlib

import numpy as np
import pytest
from image_files import AVIFS, encoded, png_of_depth, tiff_of_depth
from PIL import Image, ImageCms

from diffdistill.data.decode import CorruptPictureError, Reading, decode, read
from diffdistill.errors import UserError

EVERY_16 = np.arange(65536).reshape(256, 256)
ROUNDED = np.rint(np.arange(65536) / 257).reshape(256, 256)  # 65535 -> 255
DEEP = Reading(eight_bit=True, keep_grey=True)
PROFILES = Reading(profiles=True, keep_grey=True)
LATTICE = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(12, 18, 3).astype(np.uint8)
# a matrix profile of ICC version 2 with the primaries of Display P3 in D50 and a gamma of 1.8, and a grey one
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))


def profile(kind: bytes = b"RGB ", gamma: float = 1.8) -> bytes:
    """An ICC profile, written by hand."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    name = b"made by hand\0"
    white = b"XYZ " + bytes(4) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    tags = [(b"desc", b"desc" + bytes(4) + len(name).to_bytes(4, "big") + name + bytes(79)), (b"wtpt", white)]
    if kind == b"RGB ":
        for letter, column in zip(b"rgb", P3, strict=True):
            tags.append((bytes([letter]) + b"XYZ", b"XYZ " + bytes(4) + b"".join(map(fixed, column))))
            tags.append((bytes([letter]) + b"TRC", curve))
    else:
        tags.append((b"kTRC", curve))
    table, body, place = len(tags).to_bytes(4, "big"), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags:
        data += bytes(-len(data) % 4)
        table += tag + (place + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    rest = b"mntr" + kind + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    head = bytes(4) + bytes(4) + b"\2\x10\0\0" + rest + bytes(128 - 12 - len(rest))
    whole = head + table + body
    return len(whole).to_bytes(4, "big") + whole[4:]


def cmyk_profile() -> bytes:
    """An ICC profile in which each of the four inks is black, as a table of two points a side."""
    identity = bytes(range(256))
    matrix = b"".join((65536 if i % 4 == 0 else 0).to_bytes(4, "big") for i in range(9))
    cells = b"".join(bytes([0 if k else 255, 128, 128]) for k in range(16))  # Lab
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + 4 * identity + cells + 3 * identity
    tags = b"\0\0\0\1A2B0" + (144).to_bytes(4, "big") + len(table).to_bytes(4, "big")
    white = b"".join(round(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))
    rest = b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + white
    head = bytes(8) + b"\2\x10\0\0" + rest + bytes(128 - 12 - len(rest))
    whole = head + tags + table
    return len(whole).to_bytes(4, "big") + whole[4:]


def srgb(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def pixels(data: bytes, how: Reading = PROFILES) -> tuple[np.ndarray, tuple[str, ...]]:
    found = read(data, "x", how)
    return found.pixels.permute(1, 2, 0).numpy(), found.notices


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_rounded_to_eight(channels: int) -> None:
    shifts = (0, 7777, 31000)[:channels]
    values = np.stack([*((EVERY_16 + shift) % 65536 for shift in shifts), *[EVERY_16 * 0 + 65535] * (channels - 3)], -1)
    found, notices = pixels(png_of_depth(values, 16), DEEP)
    assert np.array_equal(found, ROUNDED.ravel()[values[..., :3]]) and notices == ("16 bits scaled to 8",)
    with pytest.raises(CorruptPictureError, match="x has 16 bits per channel; only 8"):
        read(png_of_depth(values, 16), "x", Reading())


def test_deep_tiffs_netpbms_avifs_and_floats() -> None:
    values = np.stack([EVERY_16, EVERY_16[::-1], EVERY_16.T], -1)
    assert np.array_equal(pixels(tiff_of_depth(values, 16), DEEP)[0], ROUNDED.ravel()[values])
    found, _ = pixels(b"P6 256 256 65535\n" + values.astype(">u2").tobytes(), DEEP)
    assert np.array_equal(found, ROUNDED.ravel()[values])
    found, _ = pixels(b"P5 256 256 1023\n" + (EVERY_16 % 1024).astype(">u2").tobytes(), DEEP)
    assert np.abs(found[..., 0] - EVERY_16 % 1024 * (255 / 1023)).max() <= 0.51
    for data, bits in AVIFS:
        assert pixels(base64.b64decode(data), DEEP)[1] == (f"{bits} bits scaled to 8",)
    floats = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(pixels(encoded(floats, "TIFF"), DEEP)[0][..., 0].ravel(), np.arange(256))
    for bad in (floats * 1.01, floats - 0.1, floats * np.nan):
        with pytest.raises(CorruptPictureError, match=r"x has float values outside of \[0, 1\]"):
            pixels(encoded(bad, "TIFF"), DEEP)
    with pytest.raises(CorruptPictureError, match=r"x has 32 bits per channel in a form \(TIFF, I\)"):
        pixels(encoded(Image.new("I", (4, 4)), "TIFF"), DEEP)
    with pytest.raises(CorruptPictureError, match=r"x has 16 bits per channel in a form \(PNG, LA;16B\)"):
        pixels(png_of_depth(values[..., :2], 16), DEEP)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_deep_image_is_turned_as_its_camera_says(form: str) -> None:
    values = (EVERY_16[:8, :6]).astype(np.uint16)
    exif = Image.Exif()
    exif[0x112] = 6
    options = {"exif": exif.tobytes()} if form == "PNG" else {"tiffinfo": {274: 6}}
    found, _ = pixels(encoded(Image.fromarray(values), form, **options), DEEP)
    assert np.array_equal(found[..., 0], np.rot90(np.rint(values / 257), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_grey_stays_grey_if_it_is_asked_for(mode: str) -> None:
    image = Image.fromarray(EVERY_16.astype(np.uint16)) if mode == "I;16" else Image.new("L", (4, 4), 90).convert(mode)
    assert read(encoded(image), "x", DEEP).pixels.shape[0] == 1
    assert read(encoded(image), "x", Reading(eight_bit=True)).pixels.shape[0] == 3
    assert read(encoded(Image.new("RGB", (4, 4))), "x", DEEP).pixels.shape[0] == 3


def test_transparent_parts() -> None:
    half = Image.new("RGBA", (2, 1), (100, 50, 0, 128))
    for onto, value in (("white", 255), ("black", 0)):
        found, notices = pixels(encoded(half), Reading(alpha=onto))
        wanted = np.array([100, 50, 0]) * 128 / 255 + value * 127 / 255
        assert np.abs(found[0, 0] - wanted).max() <= 1 and notices == (f"transparent parts put on {onto}",)
    with pytest.raises(CorruptPictureError, match="x has transparent parts, which are refused"):
        pixels(encoded(half), Reading(alpha="refuse"))
    half.putalpha(255)
    assert pixels(encoded(half), Reading(alpha="refuse"))[1] == ()
    grey = Image.merge("LA", (Image.new("L", (2, 2), 200), Image.new("L", (2, 2), 0)))
    found, notices = pixels(encoded(grey), Reading(alpha="black", keep_grey=True))
    assert found.shape == (2, 2, 1) and not found.any() and notices
    with pytest.raises(UserError, match="alpha is 'red'; it must be white, black or refuse"):
        Reading(alpha="red")


def test_a_profile_is_converted_by_its_own_numbers() -> None:
    to_xyz = np.array(P3).T
    from_d50 = np.linalg.inv(
        np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
    )
    wanted = srgb((LATTICE / 255) ** 1.8 @ to_xyz.T @ from_d50.T)
    data = encoded(LATTICE, icc_profile=profile())
    found, notices = pixels(data)
    assert np.abs(found - wanted).max() < 2 and np.abs(found.astype(int) - LATTICE).max() > 20
    assert notices == ("converted from the colour profile 'made by hand' to sRGB",)
    assert np.array_equal(decode(data, "x").permute(1, 2, 0).numpy(), LATTICE)  # everywhere else it is not


def test_srgb_stays_and_alpha_and_grey_are_kept() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found, notices = pixels(encoded(LATTICE, icc_profile=own))
    assert np.array_equal(found, LATTICE) and notices == ()
    clear = Image.fromarray(LATTICE).convert("RGBA")
    clear.putalpha(0)
    found, notices = pixels(encoded(clear, icc_profile=profile()))
    assert (found == 255).all() and len(notices) == 2
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found, notices = pixels(encoded(ramp, icc_profile=profile(b"GRAY")))
    assert found.shape == (16, 16, 1) and np.abs(found[..., 0] - srgb((ramp / 255) ** 1.8)).max() < 2 and notices
    palette = Image.fromarray(LATTICE).quantize(64)
    assert pixels(encoded(palette, icc_profile=profile()))[0].shape == (12, 18, 3)


def test_broken_profiles_are_ignored_and_cmyk_needs_one() -> None:
    for broken in (b"nonsense", profile()[:200], profile(b"GRAY")):
        found, notices = pixels(encoded(LATTICE, icc_profile=broken))
        assert np.array_equal(found, LATTICE) and notices == ("a colour profile that cannot be used was ignored",)
    cmyk = Image.fromarray(LATTICE).convert("CMYK")
    with pytest.raises(CorruptPictureError, match="x is CMYK without a colour profile; convert it"):
        pixels(encoded(cmyk, "JPEG"))
    with pytest.raises(CorruptPictureError, match="x is CMYK, and its colour profile cannot be used"):
        pixels(encoded(cmyk, "JPEG", icc_profile=profile()))
    assert decode(encoded(cmyk, "JPEG"), "x").shape == (3, 12, 18)


def test_cmyk_goes_through_its_profile() -> None:
    corners = [[(k >> bit) & 1 for bit in (3, 2, 1, 0)] for k in range(16)]
    inks = Image.fromarray(np.array([corners], np.uint8) * 255, "CMYK")
    found, notices = pixels(encoded(inks, "TIFF", icc_profile=cmyk_profile()))
    wanted = np.array([[255 - 255 * max(c, m, y, k)] * 3 for c, m, y, k in corners])  # each ink of it is black
    assert np.abs(found[0] - wanted).max() <= 2 and found.max() >= 253
    assert notices == ("converted from the colour profile 'without a name' to sRGB",)


def grey_tiff(data: bytes, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF of 8 x 8 pixels."""
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (273, 134), (277, 1), (278, 8),
            (279, len(data)), (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 3 if tag != 273 and tag != 279 else 4, 1, v) for tag, v in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_tiffs_of_many_bits_are_scaled_by_their_own_white() -> None:
    found, _ = pixels(grey_tiff(b"\xff" * 96, 12), DEEP)
    assert found.min() == 255  # 4095 is white
    found, _ = pixels(grey_tiff(b"\xff" * 128, 16), DEEP)
    assert found.min() == 255
    for data in (grey_tiff(b"\xff" * 128, 16, photometric=0), grey_tiff(bytes(128), 16, sample_format=2)):
        with pytest.raises(CorruptPictureError, match="signed, or whose zero is white"):
            pixels(data, DEEP)


def test_other_descriptions_of_colours_are_named() -> None:
    plain = encoded(LATTICE)
    gamma, primaries = (100000).to_bytes(4, "big"), (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    cases = (
        (b"gAMA", gamma, "the chunks gAMA and cHRM"),
        (b"gAMA", (45455).to_bytes(4, "big"), None),
        (b"cHRM", b"".join(n.to_bytes(4, "big") for n in primaries), "the chunks gAMA and cHRM"),
        (b"cICP", bytes([9, 16, 0, 1]), "the chunk cICP"),
        (b"cICP", bytes([1, 13, 0, 1]), None),
    )
    for name, content, said in cases:
        chunk = len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        found, notices = pixels(plain[:33] + chunk + plain[33:])
        assert np.array_equal(found, LATTICE)
        was = "was" if name == b"cICP" else "were"
        assert notices == (() if said is None else (f"{said}, by which its colours are not sRGB, {was} ignored",))
