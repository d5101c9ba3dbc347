"""The same images from a folder, a zip, an npz and tar shards; faults named, sizes refused before memory is taken."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffdistill.data import arrays, decode, files
from diffdistill.data.decode import CorruptPictureError
from diffdistill.data.sources import open_source
from diffdistill.errors import UserError


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def stored(kind: str, where: Path, pictures: np.ndarray) -> Path:
    named = [(f"part{i % 2}/{i}.png", png(p)) for i, p in enumerate(pictures)]
    if kind == "folder":
        for name, data in named:
            (where / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (where / kind / name).write_bytes(data)
        (where / kind / "notes.txt").write_text("no picture")
        return where / kind
    if kind == "zip":
        with zipfile.ZipFile(where / "a.zip", "w") as archive:
            for name, data in reversed(named):
                archive.writestr(name, data)
        return where / "a.zip"
    if kind == "shards":
        (where / kind).mkdir()
        for part in (0, 1):
            with tarfile.open(where / kind / f"{part}.tar", "w") as tar:
                for name, data in named[part::2]:
                    for member, content in ((name, data), (name.replace(".png", ".txt"), b"a caption")):
                        entry = tarfile.TarInfo(member)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
        return where / kind
    np.savez(where / "a.npz", pictures[[0, 2, 1, 3]])
    return where / "a.npz"


@pytest.mark.parametrize("kind", ["folder", "zip", "shards", "npz"])
def test_every_form_holds_the_same_pictures_in_order(tmp_path: Path, pictures: np.ndarray, kind: str) -> None:
    source = open_source(stored(kind, tmp_path, pictures))
    assert len(source) == 4
    for index, i in enumerate((0, 2, 1, 3)):  # by name: part0/0, part0/2, part1/1, part1/3
        assert torch.equal(source.read(index), torch.from_numpy(pictures[i]).permute(2, 0, 1))


def test_the_digest_is_of_the_contents(tmp_path: Path, pictures: np.ndarray) -> None:
    folder, archive = (open_source(stored(kind, tmp_path, pictures)) for kind in ("folder", "zip"))
    before = folder.digest()
    assert before == archive.digest() == open_source(tmp_path / "folder").digest()
    (tmp_path / "folder" / "part0" / "0.png").write_bytes(png(pictures[1]))
    assert open_source(tmp_path / "folder").digest() != before


def test_alpha_goes_onto_white_and_grey_becomes_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "0.png")
    Image.new("L", (2, 2), 7).save(tmp_path / "1.png")
    source = open_source(tmp_path)
    assert source.read(0).unique().tolist() == [255]
    assert source.read(1).shape == (3, 2, 2) and source.read(1).unique().tolist() == [7]


def test_a_corrupt_picture_is_named(tmp_path: Path, pictures: np.ndarray) -> None:
    (tmp_path / "good.png").write_bytes(png(pictures[0]))
    (tmp_path / "cut.png").write_bytes(png(pictures[0])[:60])
    (tmp_path / "text.png").write_text("no picture")
    source = open_source(tmp_path)
    assert source.read(1).shape == (3, 6, 5)
    for index, name in ((0, "cut.png"), (2, "text.png")):
        with pytest.raises(CorruptPictureError, match=f"{name} cannot be read as an image"):
            source.read(index)


def test_large_things_are_refused_by_their_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 20)
    monkeypatch.setattr(arrays, "MAX_NPZ_BYTES", 100)
    Image.new("RGB", (5, 5)).save(tmp_path / "0.png")
    with pytest.raises(CorruptPictureError, match="is 5x5; at most 20 pixels"):
        open_source(tmp_path).read(0)
    np.savez(tmp_path / "a.npz", np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="at most 100 are read"):
        open_source(tmp_path / "a.npz")
    monkeypatch.setattr(files, "MAX_BYTES", 80)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(200))
    with pytest.raises(CorruptPictureError, match="would unpack to 200 bytes"):
        open_source(tmp_path / "a.zip").read(0)


def test_what_is_no_source(tmp_path: Path) -> None:
    for name in ("a.zip", "a.npz", "a.tar", "a.mp4"):
        (tmp_path / name).write_bytes(b"neither one nor the other" * 40)
        with pytest.raises(UserError, match=name):
            open_source(tmp_path / name)
    with pytest.raises(UserError, match="no images at"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        open_source(tmp_path / "empty")
    for content, says in (
        (np.zeros((2, 4, 4, 3), np.float32), "expected uint8"),
        (np.array([{"a": 1}], dtype=object), "no readable npz"),  # a pickle inside is never loaded
    ):
        np.savez(tmp_path / "odd.npz", content)
        with pytest.raises(UserError, match=says):
            open_source(tmp_path / "odd.npz")
