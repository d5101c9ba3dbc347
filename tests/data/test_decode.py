"""One image as a person is shown it: orientation, depth, alpha, frames, and damage at every byte."""

import base64

import numpy as np
import pytest
import torch
from image_files import AVIFS, encoded, png_of_depth, tiff_of_depth
from PIL import Image, ImageOps

from diffdistill.data.decode import CorruptPictureError, decode


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


GRADIENT = np.stack(np.broadcast_arrays(np.arange(24)[:, None] * 9, np.arange(32) * 7, 80), -1).astype(np.uint8)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_a_camera_wrote_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100}
    data = encoded(GRADIENT, form, exif=exif.tobytes(), **options)
    if form == "TIFF":  # where Pillow writes a TIFF's own tag
        data = encoded(GRADIENT, form, tiffinfo={274: orientation})
    turned = ImageOps.exif_transpose(_with_orientation(orientation))
    found = decode(data, "x")
    assert found.shape == as_tensor(turned).shape
    assert float((found.float() - as_tensor(turned).float()).abs().mean()) < 4  # lossy forms come near


def _with_orientation(orientation: int) -> Image.Image:
    image = Image.fromarray(GRADIENT)
    image.getexif()[0x112] = orientation
    return image


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_refused_and_eight_are_read(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 5, channels))
    found = decode(png_of_depth(values, 8), "x")
    assert found.shape == (3, 6, 5)
    if channels == 3:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), values)
    with pytest.raises(CorruptPictureError, match="x has 16 bits per channel; only 8"):
        decode(png_of_depth(values * 257, 16), "x")


@pytest.mark.parametrize("maximum", [1, 15, 255, 1023, 65535])
@pytest.mark.parametrize("magic", [2, 3, 5, 6])
def test_what_a_netpbm_holds_decides_not_how_pillow_opens_it(magic: int, maximum: int) -> None:
    values = np.random.default_rng(1).integers(0, maximum + 1, (4, 3, 3 if magic in (3, 6) else 1))
    plain = " ".join(map(str, values.ravel())).encode()
    body = plain if magic < 4 else values.astype(">u2" if maximum > 255 else "u1").tobytes()
    data = f"P{magic} 3 4 {maximum}\n".encode() + body
    if maximum > 255:
        with pytest.raises(CorruptPictureError, match=f"has {maximum.bit_length()} bits per channel"):
            decode(data, "x")
    else:
        found = decode(data, "x").permute(1, 2, 0).numpy().astype(float)
        assert np.abs(found - values * (255 / maximum)).max() <= 1


def test_deep_tiffs_and_avifs_are_refused() -> None:
    values = np.random.default_rng(2).integers(0, 256, (4, 4, 3))
    assert np.array_equal(decode(tiff_of_depth(values, 8), "x").permute(1, 2, 0).numpy(), values)
    with pytest.raises(CorruptPictureError, match="x has 16 bits"):
        decode(tiff_of_depth(values, 16), "x")
    for mode, bits in (("F", 32), ("I", 32), ("I;16", 16)):
        with pytest.raises(CorruptPictureError, match=f"x has {bits} bits"):
            decode(encoded(Image.new(mode, (4, 4)), "TIFF"), "x")
    for data, bits in AVIFS:
        with pytest.raises(CorruptPictureError, match=f"x has {bits} bits"):
            decode(base64.b64decode(data), "x")


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_several_pictures_in_one_are_refused_but_a_cameras_first_one_is_read(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    with pytest.raises(CorruptPictureError, match="holds 3 images; only files of one image are read"):
        decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]), "x")
    camera = decode(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), "x")
    assert camera[:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_eight_bit_mode_becomes_colour_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 0)).convert(mode)
    assert decode(encoded(image), "x").unique().tolist() == [255]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["AVIF", "PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_anywhere_is_named_or_harmless(form: str) -> None:
    data = encoded(GRADIENT, form)
    for place in range(0, len(data), max(1, len(data) // 150)):
        torn = bytearray(data)
        torn[place] ^= 0xFF
        for damaged in (bytes(torn), data[:place]):
            try:
                assert decode(damaged, "x").shape[0] == 3
            except CorruptPictureError as error:
                assert str(error).startswith("x ") and "\n" not in str(error)


def test_only_pictures_formats_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", encoded(GRADIENT, "ICO"), b"", b"\0" * 99):
        with pytest.raises(CorruptPictureError, match="x cannot be read as an image"):
            decode(data, "x")
    with pytest.raises(CorruptPictureError, match="x is 32x24; at most 700 pixels"):
        decode(encoded(GRADIENT), "x", most_pixels=700)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_refused_whatever_stands_in_its_place(progressive: bool) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    thumbnail = encoded(GRADIENT, "JPEG")
    exif = Image.Exif()
    exif[0x10E] = thumbnail.decode("latin-1")  # an image with an end of its own in the header
    data = encoded(noise, "JPEG", progressive=progressive, exif=exif.tobytes())
    assert decode(data, "x").shape == (3, 64, 64)
    assert decode(data + b"a camera's own bytes \xff\xda", "x").shape == (3, 64, 64)
    half = len(data) - 2000
    for rest in (bytes(2000), b"", b"\xff" * 2000):
        with pytest.raises(CorruptPictureError, match="x (is cut short|cannot be read)"):
            decode(data[:half] + rest, "x")


def test_a_png_with_any_bit_of_its_chunks_wrong_is_refused() -> None:
    flat = np.zeros((64, 64, 3), np.uint8)
    flat[16:48, 16:48] = (200, 30, 60)
    data = encoded(flat)
    for place in range(8, len(data)):
        torn = bytearray(data)
        torn[place] ^= 0x10
        try:
            found = decode(bytes(torn), "x")
        except CorruptPictureError:
            continue
        assert np.array_equal(found.permute(1, 2, 0).numpy(), flat)  # in a part that is not read
