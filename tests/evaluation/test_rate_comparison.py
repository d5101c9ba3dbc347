"""Comparisons of codecs: searches, block grids, crops and kept rows against what is known of made-up codecs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.rate.block_grid import block_grid
from diffdistill.evaluation.rate.classic import CLASSIC, ClassicCodec
from diffdistill.evaluation.rate.comparison import Comparison
from diffdistill.evaluation.rate.crops import centre, most_different
from diffdistill.evaluation.rate.kept import KeptRows, pixels_digest
from diffdistill.evaluation.rate.measures import METRICS, check_metrics, check_sizes
from diffdistill.evaluation.rate.search import best_within
from diffdistill.evaluation.rate.summary import against, margin, worst_first


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(40, 216, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def smooth(height: int = 64, width: int = 80, seed: int = 0) -> Tensor:
    coarse = noise(4, 5, seed)[None].float()
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].round().to(torch.uint8)


@pytest.mark.parametrize("most", [0, 1, 99, 100, 101, 333, 10_000])
def test_a_search_gives_the_best_of_all_files_that_fit(most: int) -> None:
    sizes = sorted(torch.randint(100, 400, (101,), generator=torch.Generator().manual_seed(1)).tolist())
    found = best_within(lambda quality: bytes(sizes[quality]), most)
    fitting = [quality for quality, size in enumerate(sizes) if size <= most]
    assert (found.quality, found.fits) == ((fitting[-1], True) if fitting else (0, False))
    assert len(found.data) == sizes[found.quality]


@pytest.mark.parametrize("seed", range(20))
def test_a_search_never_gives_more_bytes_even_where_sizes_do_not_rise(seed: int) -> None:
    sizes = torch.randint(100, 400, (101,), generator=torch.Generator().manual_seed(seed)).tolist()
    found = best_within(lambda quality: bytes(sizes[quality]), 250)
    assert found.fits == (sizes[0] <= 250)
    assert len(found.data) == sizes[found.quality] and (len(found.data) <= 250 or not found.fits)


@pytest.mark.parametrize("rival", ["jpeg", "webp"])
def test_real_files_never_have_more_bytes(rival: str) -> None:
    image, codec = smooth(), CLASSIC[rival]
    most = len(codec.encode(image, 50))
    found = best_within(lambda quality: codec.encode(image, quality), most)
    assert found.fits and found.quality >= 50 and len(found.data) <= most
    assert codec.decode(found.data).shape == image.shape


def test_the_grid_of_noise_is_1_and_of_no_error_too() -> None:
    image = torch.full((3, 256, 256), 128, dtype=torch.uint8)
    assert block_grid(image, noise(256, 256)) == pytest.approx(1, abs=0.02)
    assert block_grid(image, image) == 1
    assert math.isinf(block_grid(image, _blocks(256, 16)))


@pytest.mark.parametrize("side", [8, 16])
def test_a_grid_in_closed_form(side: int) -> None:
    """A ramp of slope 1 inside each block, which falls by side - 1 at its border: the ratio is side - 1."""
    ramp = (torch.arange(8 * side) % side).to(torch.uint8)
    made = (ramp[:, None] + ramp).expand(3, -1, -1)
    image = torch.zeros_like(made)
    assert block_grid(image, made, side) == pytest.approx(side - 1)
    if side == 8:  # half of the lines of the finer grid lie elsewhere
        assert 1 < block_grid(image, made, 16) < side - 1
    with pytest.raises(ValueError, match="no line"):
        block_grid(image[:, :side, :side], made[:, :side, :side], side)


def _blocks(size: int, side: int) -> Tensor:
    return noise(size // side, size // side).repeat_interleave(side, 1).repeat_interleave(side, 2)


def test_the_place_where_two_images_differ_most() -> None:
    a = noise(50, 70)
    b = a.clone()
    b[:, 20:28, 41:49] = 255
    assert most_different(a, b, 8) == (41, 20)
    assert most_different(a, b, 200) == (0, 0)
    assert centre(a, 8) == (31, 21)


def test_rows_are_kept_only_while_they_are_made_from_the_same(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> Any:
        return lambda: made.append(name) or {"name": name}

    KeptRows(tmp_path / "a.json", {"x": (1, 2)}).get("k", make("first"))
    assert KeptRows(tmp_path / "a.json", {"x": [1, 2]}).get("k", make("second")) == {"name": "first"}
    assert KeptRows(tmp_path / "a.json", {"x": [1, 3]}).get("k", make("third")) == {"name": "third"}
    (tmp_path / "a.json").write_text('{"made_from": {"x": [1')
    assert KeptRows(tmp_path / "a.json", {"x": [1, 3]}).get("k", make("fourth")) == {"name": "fourth"}
    assert made == ["first", "third", "fourth"]
    assert pixels_digest(noise(4, 6)) != pixels_digest(noise(4, 6).reshape(3, 6, 4)) != pixels_digest(noise(6, 4, 1))


def test_what_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="unknown metric 'lpips'; there are psnr, ms_ssim"):
        check_metrics(["psnr", "lpips"])
    with pytest.raises(UserError, match="needs one that is measured on each photograph"):
        check_metrics(["kd"])
    assert [metric.key for metric in check_metrics(["ms_ssim", "psnr", "psnr"])] == ["psnr_db", "ms_ssim"]
    with pytest.raises(UserError, match=r"a.png is 80x64 pixels, and ms_ssim needs sides of at least 176"):
        check_sizes({"a.png": smooth()}, check_metrics(["psnr", "ms_ssim"]))


class Scaled:
    """WebP whose files are longer by zeros, which are not read."""

    def __init__(self, times: int) -> None:
        self.times, self.encoded = times, 0

    def encode(self, image: Tensor, quality: int) -> bytes:
        self.encoded += 1
        data = CLASSIC["webp"].encode(image, quality)
        return data + bytes((self.times - 1) * len(data))

    def decode(self, data: bytes) -> Tensor:
        return CLASSIC["webp"].decode(data[: len(data) // self.times])


@pytest.fixture
def images() -> dict[str, Tensor]:
    return {"a.png": smooth(), "b.png": smooth(96, 64, 1)}


def compared(images: dict[str, Tensor], folder: Path, codec: Any, rival: Any) -> Comparison:
    metrics = check_metrics(["psnr"])
    return Comparison(images, codec, "0" * 64, (0, 20, 45, 70), {"webp": rival}, metrics, folder, bpp=1.0)


class Rival(ClassicCodec):
    """The same, as a rival."""

    times = 1

    def encode(self, image: Tensor, quality: int) -> bytes:
        return Scaled(self.times).encode(image, quality)

    def decode(self, data: bytes) -> Tensor:
        return Scaled(self.times).decode(data)


class Twice(Rival):
    """With twice the bytes."""

    times = 2


@pytest.mark.parametrize(("kind", "percent"), [(Rival, 0.0), (Twice, -50.0)])
def test_beside_itself_a_codec_needs_as_many_bytes_and_half_of_one_with_twice_as_many(
    images: dict[str, Tensor], tmp_path: Path, kind: type[Rival], percent: float
) -> None:
    comparison = compared(images, tmp_path, Scaled(1), kind("webp", "WEBP", (0, 20, 45, 70)))
    rows, equal = comparison.curves(), comparison.equal_bytes()
    found = against(rows, equal, [], "webp", METRICS["psnr"])
    assert found.bd_percent == pytest.approx(percent, abs=1e-9)
    assert list(found.each.values()) == pytest.approx([percent] * 2, abs=1e-9)
    assert found.fewer == (2 if percent else 0)
    for row in equal:
        most = int(row["width"] * row["height"] / 8)
        mine, theirs = row["files"]["ours"], row["files"]["webp"]
        assert mine["bytes"] <= most or not mine["fits"]
        assert theirs["bytes"] <= mine["bytes"] or not theirs["fits"]
    margins = [margin(row, "webp", METRICS["psnr"]) for row in equal]
    if not percent:
        assert margins == [0, 0] and found.better == 0 and found.compared == 2


def test_every_row_is_of_a_file_that_is_there(images: dict[str, Tensor], tmp_path: Path) -> None:
    comparison = compared(images, tmp_path, Scaled(1), Rival("webp", "WEBP", (0, 20, 45, 70)))
    for row in comparison.curves():
        ending = "ddc" if row["codec"] == "ours" else "webp"
        file = tmp_path / "files" / row["codec"] / f"{row['image'][0]}-q{row['quality']}.{ending}"
        assert file.stat().st_size == row["bytes"]
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / images[row["image"]][0].numel())


def test_a_second_run_encodes_nothing_and_a_cut_one_goes_on(images: dict[str, Tensor], tmp_path: Path) -> None:
    rival = Rival("webp", "WEBP", (0, 20))
    first = compared(images, tmp_path, coder := Scaled(1), rival)
    rows, equal = first.curves(), first.equal_bytes()
    assert coder.encoded > 8
    again = compared(images, tmp_path, coder := Scaled(1), rival)
    assert again.curves() == rows and again.equal_bytes() == equal and coder.encoded == 0
    kept = tmp_path / "kept/ours/a.json"
    cut = json.loads(kept.read_text())
    del cut["rows"]["20"]
    kept.write_text(json.dumps(cut))
    (tmp_path / equal[1]["crops"]["centre"]["links"]["webp"]).unlink()
    assert compared(images, tmp_path, coder := Scaled(1), rival).curves() == rows and coder.encoded == 1
    assert compared(images, tmp_path, Scaled(1), rival).equal_bytes() == equal
    assert (tmp_path / equal[1]["crops"]["centre"]["links"]["webp"]).is_file()
    other = {**images, "a.png": smooth(64, 80, 5)}
    assert compared(other, tmp_path, coder := Scaled(1), rival).curves() != rows and coder.encoded == 4


def test_the_worst_photograph_comes_first() -> None:
    def row(name: str, mine: float, theirs: float, fits: bool = True) -> dict[str, Any]:
        return {"image": name, "files": {"ours": {"psnr_db": mine}, "webp": {"psnr_db": theirs, "fits": fits}}}

    rows = [row("good", 30, 20), row("none", 10, 30, False), row("bad", 30, 33), row("middle", 30, 29)]
    ordered = worst_first(rows, ["webp"], METRICS["psnr"])
    assert [each["image"] for each in ordered] == ["bad", "middle", "good", "none"]
