"""Tiles and strips give what the whole image gives: coefficients, integers, and pixels but for a level."""

import dataclasses
import importlib.util
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from small_codec import SETTINGS, network, picture
from torch import Tensor

from diffdistill.codec import Codec, tiles
from diffdistill.codec import strips as in_strips
from diffdistill.codec.bitstream import CodedImage, DamagedFileError, from_bytes, to_bytes
from diffdistill.codec.network import CodecNetwork
from diffdistill.codec.one_step import DenoiserSettings
from diffdistill.codec.saved import save_codec
from diffdistill.errors import UserError

ROOT = Path(__file__).parents[2]
QUALITY, CPU = torch.tensor([30.0]), torch.device("cpu")


def indexes_of(y: Tensor) -> np.ndarray:
    """Scale indexes of the shape of a code."""
    return np.random.default_rng(0).integers(0, 64, y.shape[1:]).astype(np.uint8)


def gentle() -> CodecNetwork:
    """The small codec with a correction of some levels, as a trained decoder has."""
    made = network()
    made.decoder.out.weight.data *= 0.02
    made.decoder.out.bias.data.zero_()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("codec")
    save_codec(gentle(), made)
    return made


@pytest.mark.parametrize("size", [(400, 600), (64, 900), (1, 700), (513, 1)])
@torch.inference_mode()
def test_tiles_with_a_halo_give_the_coefficients_of_the_whole_image(size: tuple[int, int]) -> None:
    codec, image = network(), picture(*size)
    whole = tiles.encode(codec, image, CPU, 1024)
    edges = torch.nn.functional.pad(image[None].float(), (0, -size[1] % 64, 0, -size[0] % 64), mode="replicate")
    assert torch.equal(whole, codec.encode(edges / 255))  # one tile is the image itself
    for tile in (64, 256):
        torch.testing.assert_close(tiles.encode(codec, image, CPU, tile), whole, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_the_halo_covers_what_the_encoder_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, image = network(), picture(512, 512)
    whole = tiles.encode(codec, image, CPU)
    monkeypatch.setattr(tiles, "HALO", 64)
    assert (tiles.encode(codec, image, CPU, 128) - whole).abs().max() > 1e-3
    changed = image.clone()
    changed[:, 256:272, 256:272] ^= 255
    rows = (tiles.encode(codec, changed, CPU) - whole).abs().amax((0, 1, 3)).nonzero()
    assert 16 * (16 - int(rows.min())) <= 128 and 16 * (int(rows.max()) - 16) <= 128


@torch.inference_mode()
def test_strips_settle_each_value_as_the_whole_code_does() -> None:
    codec, y = network().latent_codec, tiles.encode(network(), picture(700, 320), CPU)
    scaled = codec.scaled(y, QUALITY)
    whole_z = codec.hyper_latent(scaled, QUALITY)
    z = whole_z.round()
    features, indexes = codec.features(z, QUALITY), codec.scales(z, QUALITY)[0].numpy()
    settled, means = codec.settle(features, None, scaled, torch.from_numpy(indexes > 0)[None].float())
    r = (scaled - means).round()[0].numpy().astype(np.int16) * (indexes > 0)
    for cells in (1, 320, 1 << 14):
        torch.testing.assert_close(in_strips.hyper_latent(codec, scaled, QUALITY, cells), whole_z, rtol=0, atol=1e-5)
        with mock.patch.object(in_strips, "INDEX_CELLS", cells):
            assert np.array_equal(in_strips.scale_indexes(codec, z, QUALITY), indexes)
        found, found_means = in_strips.settle(codec, features, None, scaled, indexes, cells)
        torch.testing.assert_close(found, settled, rtol=0, atol=1e-4)
        torch.testing.assert_close(found_means, means, rtol=0, atol=1e-4)
        decoded, _ = in_strips.settle(codec, features, r, None, None, cells)
        torch.testing.assert_close(decoded, settled, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tile", [512, 1024, 4096])
def test_tiles_cover_a_side_and_their_weights_add_up(tile: int) -> None:
    for side in (*range(64, 8192, 64), 32704, 32768):
        found = tiles.spans(side, tile)
        assert found[0][0] == 0 and found[-1][1] == side
        assert len({end - begin for begin, end in found}) == 1 and found[0][1] <= tile
        assert all(begin % 64 == 0 for begin, _ in found)
        assert all(end - begin >= tiles.OVERLAP for (_, end), (begin, _) in zip(found, found[1:], strict=False))
        assert all(begin >= end for (_, end), (begin, _) in zip(found, found[2:], strict=False))
        total = torch.zeros(side)
        for (begin, end), weight in zip(found, tiles.blend_weights(found), strict=True):
            total[begin:end] += weight
            assert not weight[: tiles.MARGIN if begin else 0].any()
            assert not weight[len(weight) - (tiles.MARGIN if end < side else 0) :].any()
        torch.testing.assert_close(total, torch.ones(side))


@torch.inference_mode()
def test_tiles_that_overlap_by_all_that_the_decoder_sees_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, size = network(), (100, 1500)
    y = tiles.encode(codec, picture(*size), CPU)
    monkeypatch.setattr(tiles, "OVERLAP", 576)
    monkeypatch.setattr(tiles, "MARGIN", 264)
    assert len(tiles.spans(1536, 1024)) == 3
    for turned in (y, y.transpose(2, 3).contiguous()):
        whole = tiles.decode(codec, turned, QUALITY, indexes_of(turned), size, tile=2048)
        found = tiles.decode(codec, turned, QUALITY, indexes_of(turned), size, tile=1024)
        away = (found.short() - whole.short()).abs()
        assert int(away.max()) <= 1 and float((away > 0).float().mean()) < 1e-3  # of rounding
        size = size[::-1]


@pytest.mark.parametrize("size", [(600, 900), (1100, 100)])
@torch.inference_mode()
def test_blended_tiles_differ_from_the_whole_image_by_a_level_at_most(size: tuple[int, int]) -> None:
    codec, image = gentle(), picture(*size)
    y = tiles.encode(codec, image, CPU)
    whole = tiles.decode(codec, y, QUALITY, indexes_of(y), size, tile=2048)
    found = tiles.decode(codec, y, QUALITY, indexes_of(y), size, tile=512)
    linear = (codec.lapped.inverse(y)[0, :, : size[0], : size[1]] + 0.5).clamp(0, 1) * 255
    assert (linear - whole).abs().max() > 5  # the correction is not nothing
    assert found.shape == whole.shape == (3, *size)
    away = (found.short() - whole.short()).abs()
    assert int(away.max()) <= 1 and float((away > 0).float().mean()) < 0.02


def test_the_error_along_seams_is_that_elsewhere(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("codec_tiles", ROOT / "bench" / "codec_tiles.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    image = picture(600, 900, seed=3)
    data = Codec(folder).encode(image, 60)
    tiled, whole = (bench.seams(image, Codec(folder, tile=tile).decode(data), 512) for tile in (512, 1024))
    assert tiled["ratio"] <= whole["ratio"] * 1.005
    broken = Codec(folder, tile=512).decode(data).clone()
    middle = (tiles.spans(960, 512)[0][1] + tiles.spans(960, 512)[1][0]) // 2
    broken[:, :, middle - 8 : middle + 8] = 0  # so the measure sees a seam
    assert bench.seams(image, broken, 512)["ratio"] > 1.05 * whole["ratio"]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (100, 100), (257, 383), (640, 1030)])
def test_sizes_come_back_in_tiles_too(folder: Path, size: tuple[int, int]) -> None:
    image, small, large = picture(*size), Codec(folder, tile=512), Codec(folder, tile=4096)
    data = small.encode(image, 60, check_integers=True)
    assert data == large.encode(image, 60, check_integers=True) or max(size) > 512
    made = small.decode(data)
    assert made.shape == image.shape and made.dtype == torch.uint8
    assert int((made.short() - large.decode(data).short()).abs().max()) <= 1
    coded = from_bytes(data)
    assert (coded.height, coded.width) == size


def test_one_analysis_serves_all_qualities(folder: Path) -> None:
    codec, image = Codec(folder), picture(90, 150)
    analysis = codec.analyse(image)
    for quality in (0, 50, 100):
        assert codec.encode(analysis, quality) == codec.encode(image, quality)


@torch.inference_mode()
def test_grey_files_say_so_and_have_equal_channels(folder: Path) -> None:
    codec, image = Codec(folder), picture(90, 150)[:1]
    data = codec.encode(image, 80, check_integers=True)
    assert from_bytes(data).grey and not from_bytes(codec.encode(picture(90, 150), 80)).grey
    made = codec.decode(data)
    assert made.shape == (3, 90, 150) and torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    found, y = codec.integers(image, 80)
    indexes = torch.from_numpy(found.indexes)[None].float()
    pixels = codec.network.decode(y, torch.tensor([80.0]), indexes)[0, :, :90, :150]
    wanted = (pixels.mean(0).clamp(0, 1) * 255).round()
    assert (wanted - made[0]).abs().max() <= 1
    assert len(data) == len(codec.encode(image.expand(3, -1, -1), 80, check_integers=True))


def test_a_tiny_file_that_claims_a_huge_image_fails_fast(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    codec = Codec(folder)
    forged = to_bytes(CodedImage(1 << 14, 1 << 14, 50, codec.model, bytes(64)))
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(DamagedFileError, match="16384x16384 pixels take .* bytes or more, and it holds 64"):
        codec.decode(forged)
    assert time.perf_counter() - begin < 0.3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_tile_of_another_size_is_refused(folder: Path) -> None:
    for tile in (0, 448, 1000):
        with pytest.raises(UserError, match=f"tile is {tile}; it must be a multiple of 64, at least 512"):
            Codec(folder, tile=tile)


@torch.inference_mode()
def test_a_denoiser_sees_the_code_and_the_scales_of_its_tile() -> None:
    torch.manual_seed(5)
    settings = dataclasses.replace(SETTINGS, denoiser=DenoiserSettings(width=16, depth=1, heads=2))
    codec = CodecNetwork(settings, range(0, 32, 2), torch.linspace(4.0, 0.2, 16))
    for parameter in codec.parameters():
        if not parameter.abs().max() > 0:
            torch.nn.init.normal_(parameter, std=0.05)
    image = picture(600, 900)
    y = tiles.encode(codec, image, CPU)
    indexes = indexes_of(y)
    found = tiles.decode(codec, y, QUALITY, indexes, (600, 900), tile=512)
    for i, (top, bottom) in enumerate(tiles.spans(640, 512)):
        for j, (left, right) in enumerate(tiles.spans(960, 512)):
            cut = slice(top // 16, bottom // 16), slice(left // 16, right // 16)
            scales = torch.from_numpy(indexes[:, *cut])[None].float()
            alone = codec.decode(y[:, :, *cut].contiguous(), QUALITY, scales)[0].clamp(0, 1)
            corner = slice(*((0, 64) if i == 0 else (600 - top - 64, 600 - top)))
            side = slice(*((0, 64) if j == 0 else (900 - left - 64, 900 - left)))  # where no other tile is
            if j in (0, len(tiles.spans(960, 512)) - 1):
                mine = found[:, top:bottom, left:right][:, corner, side].float()
                assert (mine - (alone * 255)[:, corner, side]).abs().max() <= 0.501
            other = codec.decode(y[:, :, *cut].contiguous(), QUALITY, scales.flip(1))[0].clamp(0, 1)
            assert (other - alone).abs().max() > 1e-3  # the scales matter


@torch.inference_mode()
def test_pretrained_networks_run_in_tiles_too(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from small_pretrained import small_pretrained

    from diffdistill.codec.pretrained_saved import save_pretrained_codec

    save_pretrained_codec(small_pretrained(tmp_path), tmp_path / "codec")
    image, tiled, whole = picture(530, 1100), Codec(tmp_path / "codec", tile=512), Codec(tmp_path / "codec", tile=2048)
    data = tiled.encode(image, 50, check_integers=True)
    assert tiled.decode(data).shape == whole.decode(data).shape == image.shape
    y = whole.analyse(image).y
    assert y.shape == tiled.analyse(image).y.shape == (1, 16, 12, 20)
    quality, indexes = torch.tensor([50.0]), indexes_of(y)
    found = tiles.decode(tiled.network, y, quality, indexes, (530, 1100), tile=512)
    (begin, end), (left, right) = tiles.spans(768, 512)[0], tiles.spans(1280, 512)[0]
    scales = torch.from_numpy(indexes[None, :, : end // 64, : right // 64]).float()
    alone = tiled.network.decode(y[:, :, : end // 64, : right // 64].contiguous(), quality, scales)[0].clamp(0, 1)
    assert begin == left == 0 and torch.equal(found[:, :200, :200], (alone * 255).round()[:, :200, :200].byte())
