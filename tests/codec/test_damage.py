"""Files that are cut off, changed or made up: one clear error each, and never another image."""

import dataclasses
import struct
import time
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from small_codec import picture, save_small_codec

from diffdistill.codec import Codec, CodecError
from diffdistill.codec.bitstream import (
    CodedImage,
    DamagedFileError,
    NotACodecFileError,
    OtherModelError,
    TooLargeError,
    VersionError,
    from_bytes,
    to_bytes,
)
from diffdistill.codec.coder import RangeCoder
from diffdistill.codec.scales import ScaleNetwork


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return Codec(save_small_codec(tmp_path_factory.mktemp("codec")))


@pytest.fixture(scope="module")
def data(codec: Codec) -> bytes:
    return codec.encode(picture(64, 64), 20)


def signed(content: bytes) -> bytes:
    return content + struct.pack("<I", zlib.crc32(content))


def test_every_length_and_every_bit(codec: Codec, data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(CodecError, match="cut off|no file of this codec"):
            codec.decode(data[:length])
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            codec.decode(bytes(changed))
    with pytest.raises(DamagedFileError, match="longer than it says"):
        codec.decode(data + b"\0")


def test_three_thousand_random_files(codec: Codec, data: bytes) -> None:
    draw = np.random.default_rng(0)
    slowest, checked = 0.0, data[:5] + b"\1" + data[6:]  # without a checksum of its integers, noise may be a valid file
    for i in range(3000):
        size = int(draw.integers(0, 200))
        noise = draw.integers(0, 256, size, dtype=np.uint8).tobytes()
        content = [noise, data[:4] + noise, signed(checked[:11] + noise), signed(checked[:-4][: 14 + size] + noise)][
            i % 4
        ]
        begin = time.perf_counter()
        with pytest.raises(CodecError):
            codec.decode(content)
        slowest = max(slowest, time.perf_counter() - begin)
    assert slowest < 0.3


def test_a_payload_that_does_not_decode(codec: Codec, data: bytes) -> None:
    coded = from_bytes(data)
    for payload in (
        b"",
        coded.payload[:-4],
        coded.payload + b"\1\2\3\4",
        b"\xff" * len(coded.payload),
    ):
        forged = to_bytes(CodedImage(64, 64, 20, coded.model, payload, 1))
        with pytest.raises(DamagedFileError):
            codec.decode(forged)


def test_absurd_sizes_take_no_memory(codec: Codec, data: bytes) -> None:
    model = from_bytes(data).model
    for width, height in ((1 << 31, 1 << 31), (1 << 20, 1), (1 << 15, (1 << 13) + 1)):
        with pytest.raises(TooLargeError, match="pixels"):
            codec.decode(to_bytes(CodedImage(width, height, 50, model, b"")))
    with pytest.raises(DamagedFileError, match="8192x8192 pixels take .* bytes or more, and it holds 4"):
        codec.decode(to_bytes(CodedImage(1 << 13, 1 << 13, 50, model, b"\0\0\0\0")))
    with pytest.raises(DamagedFileError, match="0x64"):
        codec.decode(to_bytes(CodedImage(0, 64, 50, model, b"")))


def test_each_kind_of_error_is_named(codec: Codec, data: bytes) -> None:
    with pytest.raises(NotACodecFileError, match="photo.png is no file of this codec"):
        codec.decode(b"\x89PNG" + data[4:], "photo.png")
    with pytest.raises(VersionError, match="of version 1 of the format; this program reads version 2"):
        codec.decode(signed(data[:4] + b"\1" + data[5:-4]))
    with pytest.raises(VersionError, match="flags 0x80"):
        codec.decode(signed(data[:5] + b"\x82" + data[6:-4]))
    with pytest.raises(OtherModelError, match="00000000"):
        codec.decode(signed(data[:6] + b"\0\0\0\0" + data[10:-4]))
    with pytest.raises(DamagedFileError, match="quality 101"):
        codec.decode(signed(data[:10] + b"\x65" + data[11:-4]))
    with pytest.raises(DamagedFileError, match="more bytes than it needs"):
        codec.decode(signed(data[:11] + b"\xc0\0" + data[12:-4]))


def test_a_payload_that_is_too_short_is_found_out_at_its_first_strip(codec: Codec) -> None:
    """A right z of a large image, and nothing for r: the work ends where r needs more bits than are there."""
    image = picture(1024, 1024)
    coded = from_bytes(codec.encode(image, 90))
    z = codec.read_integers(coded).z
    nothing = np.zeros((1, 1, 1), np.int16)
    level = 90 * (len(codec.z_tables) - 1) // 100 + 1
    payload = RangeCoder(codec.z_tables, codec.r_tables).encode(z, nothing, nothing.astype(np.uint8), level)
    short = to_bytes(dataclasses.replace(coded, payload=payload))
    parts, whole = [], ScaleNetwork.forward

    def counted(self: ScaleNetwork, z: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        parts.append(z.shape)
        return whole(self, z, quality)

    with (
        mock.patch("diffdistill.codec.strips.INDEX_CELLS", 256),
        mock.patch.object(ScaleNetwork, "forward", counted),
        pytest.raises(DamagedFileError, match="holds less than the image needs"),
    ):
        codec.decode(short)
    assert 0 < len(parts) < 8  # of 16


def test_what_is_not_an_image_is_refused(codec: Codec) -> None:
    for image in (
        torch.zeros(3, 8, 8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="uint8 of shape"):
            codec.encode(image)


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    from diffdistill.errors import UserError

    with pytest.raises(UserError, match="config.json is missing"):
        Codec(tmp_path)
    folder = save_small_codec(tmp_path / "codec")
    content = (folder / "codec.safetensors").read_bytes()
    (folder / "codec.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged"):
        Codec(folder)
    tensors = load(content)
    tensors["latent_codec.scales.offset"][0, 0] = 100
    (folder / "codec.safetensors").write_bytes(save(tensors))
    with pytest.raises(UserError, match="a weight of its scale network is beyond 127, or an offset beyond 64"):
        Codec(folder)
    (folder / "config.json").write_text('{"a": ' * 100_000)
    with pytest.raises(UserError, match="is damaged"):
        Codec(folder)
