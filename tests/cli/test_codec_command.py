"""`diffdistill codec`: files, folders and pipes; sizes that were asked for; nothing is overwritten or half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_codec import picture, save_small_codec

from diffdistill.cli.main import main
from diffdistill.codec import Codec
from diffdistill.codec.bitstream import from_bytes
from diffdistill.data.decode import decode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_codec(tmp_path_factory.mktemp("codec")))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "inside").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "inside/c.webp")):
        Image.fromarray(picture(70, 90 + i, seed=i).permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["codec", *argv]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_there_and_back(model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, images = tmp_path / "files", tmp_path / "images"
    assert main(["codec", "encode", str(photos), "-o", str(files), "-m", model, "--verify", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["file"]).name for row in said] == ["a.png", "b.jpg", "c.webp"]
    assert sorted(p.relative_to(files).as_posix() for p in files.rglob("*.ddc")) == ["a.ddc", "b.ddc", "inside/c.ddc"]
    assert said[0]["bytes"] == (files / "a.ddc").stat().st_size
    assert main(["codec", "info", "--json", str(files / "a.ddc")]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["width"], info["height"], info["quality"], info["integers_checked"]) == (90, 70, 50, True)
    assert main(["codec", "decode", str(files), "-o", str(images), "-m", model]) == 0
    assert decode((images / "inside/c.png").read_bytes(), "c").shape == (3, 70, 92)
    assert "is there already" in refused(capsys, "encode", str(photos), "-o", str(files), "-m", model)
    assert main(["codec", "encode", str(photos), "-o", str(files), "-m", model, "--overwrite"]) == 0


@pytest.mark.parametrize("option", ["--target_size", "--target_bpp"])
def test_never_more_than_was_asked_for(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    sizes = {}
    for quality in (0, 40, 100):
        assert main(["codec", "encode", str(photos / "a.png"), "-o", str(tmp_path / f"{quality}.ddc"), "-m", model,
                     "-q", str(quality)]) == 0  # fmt: skip
        sizes[quality] = (tmp_path / f"{quality}.ddc").stat().st_size
    assert sizes[0] < sizes[40] < sizes[100]
    most = sizes[40] + 1
    asked = str(most) if option == "--target_size" else str(8 * most / (70 * 90))
    out = tmp_path / "made.ddc"
    assert main(["codec", "encode", str(photos / "a.png"), "-o", str(out), "-m", model, option, asked]) == 0
    assert sizes[0] < out.stat().st_size <= most
    low = "5" if option == "--target_size" else "0.001"
    said = refused(capsys, "encode", str(photos / "a.png"), "-o", str(tmp_path / "x.ddc"), "-m", model, option, low)
    assert f"takes {sizes[0]:,} bytes at the lowest quality" in said and not (tmp_path / "x.ddc").exists()


def test_a_target_analyses_the_image_once(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    analyse = Codec.analyse
    monkeypatch.setattr(Codec, "analyse", lambda self, image: calls.append(image) or analyse(self, image))
    with Image.open(photos / "a.png") as opened:
        image = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
    sizes = {q: len(Codec(model).encode(image, q)) for q in (12, 48, 96)}
    calls.clear()
    for q in sizes:
        out = tmp_path / f"{q}.ddc"
        args = ["codec", "encode", str(photos / "a.png"), "-o", str(out), "-m", model, "--target_size", str(sizes[q])]
        assert main(args) == 0
        assert len(calls) == 1 and out.stat().st_size <= sizes[q]
        assert from_bytes(out.read_bytes()).quality >= q
        calls.clear()


def test_one_bad_file_does_not_stop_the_others(
    model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.jpg").write_bytes((photos / "b.jpg").read_bytes()[:200])
    said = refused(capsys, "encode", str(photos), "-o", str(tmp_path / "files"), "-m", model)
    assert said.endswith("1 of 3 files failed")
    assert sorted(p.name for p in (tmp_path / "files").rglob("*")) == ["a.ddc", "c.ddc", "inside"]
    (tmp_path / "files/a.ddc").write_bytes((tmp_path / "files/a.ddc").read_bytes()[:-3])
    assert "cut off" in refused(
        capsys, "decode", str(tmp_path / "files/a.ddc"), "-o", str(tmp_path / "a.png"), "-m", model
    )
    assert not (tmp_path / "a.png").exists()


def test_what_is_refused_at_once(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = str(photos / "a.png"), str(tmp_path / "a.ddc")
    assert "--quality is 101" in refused(capsys, "encode", image, "-o", out, "-q", "101")
    assert "--target_bpp is 0" in refused(capsys, "encode", image, "-o", out, "--target_bpp", "0")
    assert "there is no file nothing.png" in refused(capsys, "encode", "nothing.png", "-o", out)
    assert "there is no codec at" in refused(capsys, "encode", image, "-o", out, "-m", str(photos))
    assert "did you mean encode" in refused(capsys, "encod")
    assert "no file of this codec" in refused(capsys, "info", image)
    twice = [image, str(photos / "a.png"), "-o", str(tmp_path / "files")]
    assert "would both be written" in refused(capsys, "encode", *twice)
    assert main(["codec", "--help"]) == 0
    assert "is an input too" in refused(capsys, "encode", image, "-o", image, "--overwrite")
    assert "is a .ddc file" in refused(capsys, "encode", image, "-o", str(tmp_path / "a.jpg"))
