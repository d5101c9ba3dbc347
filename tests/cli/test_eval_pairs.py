"""`eval pairs` through the command: numbers by their definitions, pairing, one process and two, patches, refusals."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_calls import in_two, noise, one_thread, refused, said
from PIL import Image

from diffdistill.data.sources import open_source
from diffdistill.evaluation.features.mobilenet import MobileNetFeatures, _packaged_weights
from diffdistill.evaluation.pairs.patches import PatchFeatures, patch_distance
from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.evaluation.pairs.pixels import ms_ssim

ROOT = Path(__file__).parents[2]
NAMES = [f"{i:02d}.png" for i in range(5)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five originals of two sizes, and the same with noise as .bmp; the fourth is equal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    draw = np.random.default_rng(0)
    for folder in ("x", "y"):
        Path(folder).mkdir()
    for i, name in enumerate(NAMES):
        x = draw.integers(0, 256, (180, 176 + 8 * (i > 2), 3), dtype=np.uint8)
        y = np.clip(x + draw.integers(-8 * i, 8 * i + 1, x.shape), 0, 255) if i != 3 else x
        Image.fromarray(x).save(f"x/{name}")
        Image.fromarray(y.astype(np.uint8)).save(f"y/{Path(name).stem}.bmp")
    Image.new("RGB", (176, 180)).save("y/00.bmp")
    return tmp_path


def pixels(folder: str) -> list[np.ndarray]:
    source = open_source(folder)
    return [source.read(i).numpy().astype(np.float64) for i in range(len(source))]


def psnrs() -> list[float | None]:
    errors = [np.square(x - y).mean() for x, y in zip(pixels("x"), pixels("y"), strict=True)]
    return [10 * math.log10(255**2 / error) if error else None for error in errors]


def test_psnr_and_ms_ssim_of_every_pair(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "pairs", "--reference", "x", "--images", "y", "--metrics", "psnr", "ms_ssim", "--per_picture")
    assert [row["name"] for row in found["per_picture"]] == NAMES
    known = psnrs()
    assert [row["psnr"] for row in found["per_picture"]] == [v if v is None else pytest.approx(v) for v in known]
    finite = [value for value in known if value is not None]
    psnr = found["psnr"]
    assert (psnr["mean"], psnr["se"], psnr["max"], psnr["infinite"]) == (None, None, None, 1)  # the fourth is equal
    assert psnr["min"] == pytest.approx(min(finite))
    values = [
        float(ms_ssim(torch.from_numpy(x / 255)[None], torch.from_numpy(y / 255)[None]))
        for x, y in zip(pixels("x"), pixels("y"), strict=True)
    ]
    assert [row["ms_ssim"] for row in found["per_picture"]] == pytest.approx(values)
    similar = found["ms_ssim"]
    assert (similar["mean"], similar["min"], similar["max"]) == pytest.approx((np.mean(values), min(values), 1))
    assert similar["se"] == pytest.approx(np.std(values, ddof=1) / 5**0.5)
    assert found["n"] == 5 and similar["protocol"]["convention"] == "per-channel"
    first = said(capsys, "pairs", "--reference", "x", "--images", "y", "--metrics", "psnr", "--pictures", "3")
    assert first["n"] == 3 and first["psnr"]["mean"] == pytest.approx(np.mean(finite[:3]))
    assert first["psnr"]["max"] == pytest.approx(max(finite[:3])) and "infinite" not in first["psnr"]


def test_by_default_what_needs_no_download(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        distance = st_lpips()
    except Exception as error:
        pytest.skip(str(error))
    found = said(capsys, "pairs", "--reference", "x", "--images", "y", "--out", "report.json")
    assert json.loads(Path("report.json").read_text()) == found
    assert set(found) == {"pictures", "reference", "n", "paired_by", "psnr", "ms_ssim", "st-lpips-alex"}
    x, y = (torch.from_numpy(pixels(folder)[1] / 255)[None] for folder in "xy")
    one = said(capsys, "pairs", "--reference", "x", "--images", "y", "--metrics", "st_lpips", "--per_picture")
    assert one["per_picture"][1]["st-lpips-alex"] == pytest.approx(float(distance(x, y)), rel=1e-5)
    assert one["per_picture"][3]["st-lpips-alex"] == 0


def test_names_pair_in_any_container_and_an_npz_in_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile("y.zip", "w") as archive:
        for file in sorted(Path("y").iterdir(), reverse=True):
            archive.write(file, file.name)
    options = ("--metrics", "psnr", "--per_picture")
    folder = said(capsys, "pairs", "--reference", "x", "--images", "y", *options)
    zipped = said(capsys, "pairs", "--reference", "x", "--images", "y.zip", *options)
    assert zipped["per_picture"] == folder["per_picture"]
    stack = [np.stack([image.astype(np.uint8) for image in pixels(k)[:3]]) for k in "xy"]
    np.savez("x.npz", stack[0])
    np.savez("y.npz", stack[1])
    ordered = said(capsys, "pairs", "--reference", "x.npz", "--images", "y.npz", *options)
    assert [row["psnr"] for row in ordered["per_picture"]] == [row["psnr"] for row in folder["per_picture"][:3]]
    assert "holds 5 images, y.npz 3" in refused(capsys, "pairs", "--reference", "x", "--images", "y.npz")


def test_two_processes_give_the_numbers_of_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--reference", "x", "--images", "y", "--metrics", "psnr", "ms_ssim", "--per_picture", "--on_corrupt"]
    Path("y/01.bmp").write_text("no image")
    with one_thread():
        one = said(capsys, "pairs", *options, "skip")
    in_two(["pairs", *options, "skip", "--out", "two.json"])
    found = [one, json.loads(Path("two.json").read_text())]
    assert [row["name"] for row in found[0]["per_picture"]] == [NAMES[i] for i in (0, 2, 3, 4)]
    for one, two in zip(*(report["per_picture"] for report in found), strict=True):
        assert two == {k: v if v is None or k == "name" else pytest.approx(v, rel=1e-12) for k, v in one.items()}
    assert found[0]["n"] == 4
    for key in ("mean", "se", "min", "max"):
        assert found[1]["ms_ssim"][key] == pytest.approx(found[0]["ms_ssim"][key], rel=1e-12)


def test_patches_are_those_of_patch_distance(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _packaged_weights()
    if weights is None or not weights.is_file():
        pytest.skip("MobileNetV2's weights are missing")
    given = ("pairs", "--reference", "x", "--images", "y", "--metrics", "patches")
    found = said(capsys, *given, "--patch_side", "64", "--second_pass", "all")["patches"]
    images = [[torch.from_numpy(image.astype(np.uint8)) for image in pixels(folder)] for folder in "yx"]
    expected = patch_distance(images[0], images[1], PatchFeatures(MobileNetFeatures(), 64, "all"))
    assert found["fd/64"] == pytest.approx(expected.frechet.total, rel=1e-6)
    assert (found["kd/64"], found["kd/64_se"]) == pytest.approx((expected.kernel, expected.kernel_standard_error))
    assert (found["n"], found["n_reference"]) == (expected.n, expected.n)
    assert found["protocol"]["patches"] == {"side": 64, "second_pass": "all"}
    assert "holds no patch of 256x256" in refused(capsys, *given)
    assert "patches are cut from images as they are" in refused(capsys, *given, "--protocol", "coco30k-clean256")


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise("small", 5, 0)
    noise("fewer", 3, 0)
    noise("twice", 5, 0)
    Image.new("RGB", (8, 8)).save("twice/01.jpg")
    for images, options, says in (
        ("nowhere", (), "no images at nowhere"),
        ("fewer", (), "fewer has no partner for 03, 04"),
        ("twice", (), "twice holds two images named 01: 01.jpg and 01.png"),
        ("small", ("--metrics", "psnr"), "00.png is 176x180 in x, 8x8 in small; a pair needs one size"),
        ("y", ("--pictures", "9"), "5 pairs; 9 were asked for"),
        ("y", ("--metrics", "ssim"), "unknown metric 'ssim'; there are psnr, ms_ssim,"),
        ("y", ("--weights_lpips", "download"), "--weights_lpips needs lpips among the --metrics"),
        ("y", ("--weights", "download"), "--weights is for the extractor of patches"),
        ("y", ("--metrics", "patches", "--patch_side", "63"), "--patch_side is 63; it must be even"),
        (
            "y",
            ("--metrics", "lpips", "dists"),
            "then pass --weights_lpips PATH, or --weights_lpips download; dists: VGG",
        ),
        ("y", ("--metrics", "lpips", "--weights_lpips", "x/00.png"), "(or --weights_sha256_lpips "),
    ):
        assert says in refused(capsys, "pairs", "--reference", "x", "--images", images, *options)
    assert "x has no partner for 05, 06, 07 and 1 more" in refused(
        capsys, "pairs", "--reference", "x", "--images", str(noise("more", 9, 0))
    )
    assert "at least 176 pixels a side, got 8x8" in refused(
        capsys, "pairs", "--reference", "small", "--images", "small"
    )
