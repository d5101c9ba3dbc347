"""Captioned images for training: the same from a folder, a zip and tar shards; crops, sizes, and what is refused."""

import csv
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import save_tiny_pictures

from diffdistill.data import captioned as module
from diffdistill.data.captioned import CaptionedData, fitted, load_captioned
from diffdistill.errors import UserError

CAPTIONS = ["a red barn in snow", "two dogs on a beach", "an old clock", "bread and butter"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images of 40 by 32 pixels with their captions beside them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(draw.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption + "\n")
    return folder


def test_a_folder_its_zip_and_its_shard_are_one_set(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.iterdir()):
            archive.write(file, file.name)
    with tarfile.open(tmp_path / "photos.tar", "w") as shard:
        for file in sorted(photos.iterdir()):
            shard.add(file, file.name)
    sets = [
        load_captioned(CaptionedData(str(path))) for path in (photos, tmp_path / "photos.zip", tmp_path / "photos.tar")
    ]
    for found in sets:
        assert found.captions == CAPTIONS and found.styles is None
        assert torch.equal(found.images, sets[0].images) and found.images.shape == (4, 3, 40, 32)


def test_captions_of_a_file_go_by_the_name_of_the_image(photos: Path, tmp_path: Path) -> None:
    for file in photos.glob("*.txt"):
        file.unlink()
    table = tmp_path / "captions.csv"
    with table.open("w", newline="") as out:
        csv.writer(out).writerows([("file_name", "text"), *((f"{i}.png", CAPTIONS[i]) for i in (2, 0, 3, 1))])
    assert load_captioned(CaptionedData(str(photos), f"{table}::text")).captions == CAPTIONS
    with pytest.raises(UserError, match="has no captions; put a NAME.txt beside each image"):
        load_captioned(CaptionedData(str(photos)))
    assert load_captioned(CaptionedData(str(photos)), captioned=False).captions == [""] * 4


def test_captions_that_pair_by_order_are_reported(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "captions.csv"
    rows = [("my", "caption"), *((str(i), CAPTIONS[i]) for i in (3, 2, 1, 0))]
    table.write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert load_captioned(CaptionedData(str(photos), f"{table}::caption")).captions == CAPTIONS[::-1]
    assert capsys.readouterr().err == f"note: captions of {table}::caption are paired with images by order\n"
    table.write_text(table.read_text().replace("my,", "file_name,"))
    assert load_captioned(CaptionedData(str(photos), f"{table}::caption")).captions == CAPTIONS
    assert capsys.readouterr().err == ""


def test_the_emoji_layout_has_styles_and_whole_captions(tmp_path: Path) -> None:
    emoji = load_captioned(CaptionedData(str(save_tiny_pictures(tmp_path / "set"))))
    assert emoji.captions[0] == "red apple, noto" and emoji.images.shape == (16, 3, 64, 64)
    small = load_captioned(CaptionedData(str(tmp_path / "set"), size=32))
    assert small.images.shape == (16, 3, 32, 32)
    with pytest.raises(UserError, match="captions of its own"):
        load_captioned(CaptionedData(str(tmp_path / "set"), "captions.txt"))


def test_fitted_keeps_what_fits_and_takes_the_middle_of_the_rest() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(3, 16, 32).contiguous()
    assert fitted(ramp, (16, 32)) is ramp
    middle = fitted(ramp, (16, 16))
    assert torch.equal(middle, ramp[:, :, 8:24])  # a crop alone: no pixel is interpolated
    flat = torch.full((3, 50, 70), 77, dtype=torch.uint8)
    assert torch.equal(fitted(flat, (20, 30)), torch.full((3, 20, 30), 77, dtype=torch.uint8))


def test_fitted_agrees_with_pillow_on_a_photo_like_image() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, size=(64, 64), mode="bicubic") * 40 + 128
    image = smooth[0].round().clamp(0, 255).byte()
    ours = fitted(image, (24, 24)).int()
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((24, 24), Image.Resampling.BICUBIC)
    assert (ours - torch.from_numpy(np.asarray(pillow)).permute(2, 0, 1).int()).abs().max() <= 1


def test_sizes_that_do_not_fit_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "4.png")
    (photos / "4.txt").write_text("black\n")
    with pytest.raises(UserError, match="holds images of 32 by 40 and 8 by 8 pixels; set size"):
        load_captioned(CaptionedData(str(photos)))
    assert load_captioned(CaptionedData(str(photos), size=16)).images.shape == (5, 3, 16, 16)
    with pytest.raises(UserError, match="size is 16, and the model takes images of 32 by 32 pixels"):
        load_captioned(CaptionedData(str(photos), size=16), (32, 32))
    small = "photos: 4.png: the image has 8 by 8 pixels, but the model takes 32 by 32; .* set size to 32"
    with pytest.raises(UserError, match=small):
        load_captioned(CaptionedData(str(photos)), (32, 32))
    emoji = str(save_tiny_pictures(photos.parent / "set"))
    with pytest.raises(UserError, match="set: the image has 64 by 64 pixels, but the model takes 96 by 96"):
        load_captioned(CaptionedData(emoji), (96, 96))
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="take fewer, or set size"):
        load_captioned(CaptionedData(str(photos), size=16))
    with pytest.raises(UserError, match="size is 0"):
        CaptionedData("x", size=0)
    with pytest.raises(UserError, match="source is empty"):
        CaptionedData("")
    with pytest.raises(UserError, match="source is null"):
        load_captioned(CaptionedData(None))
