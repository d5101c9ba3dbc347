"""A file holds what was encoded: the same integers by two decoders, however networks run, in few bytes."""

from pathlib import Path

import numpy as np
import plain_decoder
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codec import picture, save_small_codec

from diffdistill.codec import Codec
from diffdistill.codec.bitstream import from_bytes
from diffdistill.codec.coder import RangeCoder
from diffdistill.codec.tables import gaussian_tables, to_integers
from diffdistill.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return Codec(folder)


@pytest.mark.parametrize("size", [(1, 1), (1, 130), (64, 64), (100, 100), (65, 200)])
def test_sizes_come_back(codec: Codec, size: tuple[int, int]) -> None:
    image = picture(*size)
    made = codec.decode(codec.encode(image, 60, check_integers=True))
    assert made.shape == image.shape and made.dtype == torch.uint8


def test_the_decoder_has_the_encoders_code(codec: Codec) -> None:
    image = picture(130, 190)
    for quality in (0, 33, 100):
        found, code = codec.integers(image, quality)
        read = codec.read_integers(from_bytes(codec.encode(image, quality)))
        for mine, theirs in zip(found, read, strict=True):
            assert np.array_equal(mine, theirs)
        codec_ = codec.network.latent_codec
        of = torch.tensor([float(quality)])
        z, r = (torch.from_numpy(x)[None].float() for x in (read.z, read.r))
        with torch.inference_mode():
            settled, _ = codec_.settle(codec_.features(z, of), r, None)
            torch.testing.assert_close(codec_.unscaled(settled, of), code, rtol=1e-4, atol=1e-4)


def test_a_second_decoder_reads_the_same_integers(codec: Codec, folder: Path) -> None:
    model = plain_decoder.model_of(folder)
    for quality, size in ((7, (70, 100)), (100, (64, 64))):
        image = picture(*size)[: 1 if quality == 7 else 3]
        data, (found, _) = codec.encode(image, quality, check_integers=quality == 7), codec.integers(image, quality)
        read = plain_decoder.decode(data, model)
        assert (read["width"], read["height"], read["quality"]) == (size[1], size[0], quality)
        assert read["grey"] == (quality == 7)
        assert read["z"] == found.z.tolist() and read["r"] == found.r.tolist()
    assert (np.abs(found.r) > 0).any() and len(np.unique(found.indexes)) > 5


def test_any_whole_number_is_a_quality(codec: Codec) -> None:
    image = picture(20, 20)
    assert codec.encode(image, np.int64(40)) == codec.encode(image, 40)
    for quality in (True, 40.0, np.float32(40), -1, 101):
        with pytest.raises(UserError, match="must be a whole number"):
            codec.encode(image, quality)  # type: ignore[arg-type]


def test_the_integers_do_not_depend_on_how_networks_run(codec: Codec) -> None:
    z = torch.from_numpy(codec.integers(picture(256, 320), 50)[0].z)[None].float()
    quality, scales = torch.tensor([50.0]), codec.network.latent_codec.scales
    expected = scales(z, quality)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert torch.equal(scales(z, quality), expected)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(scales(z, quality), expected)
            assert torch.equal(scales(z.contiguous(memory_format=torch.channels_last), quality), expected)
            assert torch.equal(scales(torch.cat([z.flip(1), z, -z]), quality.repeat(3))[1:2], expected)
    finally:
        torch.set_num_threads(threads)
    assert int(expected.min()) >= 0 and int(expected.max()) <= 63


def test_few_bytes_beyond_the_tables_entropy(codec: Codec) -> None:
    for quality in (0, 50, 100):
        image = picture(256, 384, seed=quality)
        found, _ = codec.integers(image, quality)
        of_level = zip(codec.z_tables[(quality + 10) // 20], found.z, strict=True)
        bits = -sum(np.log2(table[row.ravel() + 127] / 65536).sum() for table, row in of_level)
        for index, table in list(enumerate(codec.r_tables))[1:]:  # values with index 0 are not coded
            r, half = found.r[found.indexes == index], (len(table) - 2) // 2
            outside = np.abs(r) > half
            bits += -np.log2(table[np.where(outside, 2 * half + 1, r + half)] / 65536).sum() + 16 * outside.sum()
        assert len(codec.encode(image, quality)) <= 1.003 * bits / 8 + 24


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 30.0, 3000.0]))
def test_any_integers_come_back(seed: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    tables = np.stack([[to_integers(draw.random(255)) for _ in range(3)]] * 2), gaussian_tables()
    coder = RangeCoder(*tables)
    z = draw.integers(-127, 128, (3, 1, 2))
    r = np.clip(np.rint(draw.standard_normal((4, 4, 8)) * size), -32768, 32767).astype(np.int32)
    indexes = draw.integers(0, 64, r.shape)
    r[indexes == 0] = 0
    payload = coder.encode(z, r, indexes, 1)
    found, decoder = coder.decode_z(payload, (1, 2), 1)
    assert np.array_equal(found, z) and np.array_equal(coder.decode_r(decoder, indexes), r)


def test_tables() -> None:
    for index, table in enumerate(gaussian_tables()):
        assert table.sum() == 65536 and table.min() >= 1 and len(table) % 2 == 0, index
        assert np.array_equal(table[:-1], table[-2::-1])


def test_values_of_the_narrowest_table_are_zero_and_take_no_bits(codec: Codec) -> None:
    latent_codec, of = codec.network.latent_codec, torch.tensor([0.0])
    generator = torch.Generator().manual_seed(0)
    shape = codec.network.settings.channels, 8, 8
    scaled = torch.randn(1, *shape, generator=generator) * 3
    features = latent_codec.features(torch.zeros(1, codec.network.settings.hyper, 2, 2), of)
    coded = torch.zeros_like(scaled)
    settled, means = latent_codec.settle(features, None, scaled.requires_grad_(), coded)
    decoded, _ = latent_codec.settle(features, torch.zeros_like(scaled), None)
    torch.testing.assert_close(settled, decoded)  # nothing was told
    assert (scaled - means).round().abs().max() > 0
    found, _ = codec.integers(picture(128, 128), 0)
    assert (found.indexes == 0).any() and not found.r[found.indexes == 0].any()
    coder = RangeCoder(codec.z_tables, codec.r_tables)
    nothing, z = np.zeros_like(found.r), np.zeros_like(found.z)
    with pytest.raises(ValueError, match="index 0"):
        coder.encode(z, nothing + 1, nothing.astype(np.uint8), 0)
    few, many = (coder.encode(z, x, x.astype(np.uint8), 0) for x in (nothing, np.zeros((16, 400, 400), np.int16)))
    assert len(few) == len(many)
