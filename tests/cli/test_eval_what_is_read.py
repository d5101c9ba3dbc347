"""What the reports of `eval` say of the images that were left out and of the captions that were paired."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from eval_calls import refused, said
from PIL import Image
from stub_towers import stand_in


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "diffdistill.evaluation.agreement.align", stand_in())
    return tmp_path


def noise_png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def folder(name: str, files: dict[str, bytes]) -> Path:
    for file, data in files.items():
        (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
        (Path(name) / file).write_bytes(data)
    return Path(name)


def test_what_was_left_out_is_counted_in_the_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    clean = {f"{i}.png": noise_png(i) for i in range(4)}
    folder("clean", clean)
    folder("odd", {**clean, ".cache/9.png": noise_png(9), "a.heic": b"x", "b.heic": b"y", "notes.md": b"z"})
    folder("real", {f"{i}.png": noise_png(50 + i) for i in range(5)} | {"Thumbs.db": b"x"})
    plain = said(capsys, "calc", "--images", "clean", "--reference", "real")
    odd = said(capsys, "calc", "--images", "odd", "--reference", "real")
    assert "left_out" not in plain and plain["left_out_of_reference"] == {"not an image: .db": 1}
    assert odd["left_out"] == {"hidden": 1, "not an image: .heic": 2, "not an image: .md": 1}
    assert odd["fd"] == plain["fd"] and odd["n"] == 4
    (here / "odd" / "3.png").write_bytes(noise_png(3)[:80])
    skipping = said(capsys, "calc", "--images", "odd", "--reference", "real", "--on_corrupt", "skip")
    assert skipping["left_out"]["corrupt"] == 1 and skipping["n"] == 3
    made = said(capsys, "ref", "--images", "odd", "--out", "odd.safetensors", "--on_corrupt", "skip")
    assert made["left_out"]["corrupt"] == 1 and made["left_out"]["hidden"] == 1
    assert "3.png cannot be read" in refused(capsys, "calc", "--images", "odd", "--reference", "real")


@pytest.mark.parametrize("name", ["grid.png", "x.jfif", "y.tif", "Z.GIF"])
def test_a_name_alone_leaves_no_picture_out(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder("a", {name: noise_png(0), "other.png": noise_png(1)})
    shutil.make_archive("a", "zip", "a")
    for source in ("a", "a.zip"):
        found = said(capsys, "pairs", "--reference", source, "--images", "a", "--metrics", "psnr", "--per_picture")
        assert found["n"] == 2 and found["psnr"]["infinite"] == 2 and found["paired_by"] == "name"
        assert {row["name"] for row in found["per_picture"]} == {name, "other.png"}


def test_pairs_meet_across_normal_forms_and_count_what_they_leave_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder("x", {"e\u0301.png": noise_png(0), ".y.png": noise_png(1)})
    with zipfile.ZipFile("y.zip", "w") as packed:
        packed.writestr("\u00e9.png", noise_png(0))
        packed.writestr("__MACOSX/._e.png", b"resource fork")
    found = said(capsys, "pairs", "--reference", "x", "--images", "y.zip", "--metrics", "psnr")
    assert found["psnr"]["infinite"] == 1 and found["left_out"] == {"hidden": 2}
    folder("z", {"\u00e9.png": noise_png(0), "e\u0301.png": noise_png(0)})
    assert "holds two images named" in refused(capsys, "pairs", "--reference", "x", "--images", "z")


COLOURS = {"0": "red", "1": "#00ff00", "2": "blue", "10": "red"}


@pytest.mark.parametrize("how", ["lines", "names", "beside", "columns"])
def test_captions_meet_their_pictures(here: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    Path("set").mkdir()
    words = {"0": "red apple", "1": "green pear", "2": "blue car", "10": "red car"}
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(f"set/{name}.png")
        if how == "beside":
            Path(f"set/{name}.txt").write_text(words[name])
    file = {"lines": "c.txt", "names": "c.jsonl", "columns": "c.csv", "beside": None}[how]
    if how == "lines":
        Path("c.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(words.values()).encode())
    elif how == "names":
        rows = [{"file_name": f"{name}.png", "text": words[name]} for name in ("10", "2", "0", "1")]
        Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif how == "columns":
        Path("c.csv").write_text("Title,image\n" + "".join(f"{words[n]},{n}.png\n" for n in ("1", "10", "2", "0")))
    captions = () if file is None else ("--captions", file + ("::Title" if how == "columns" else ""))
    found = said(capsys, "calc", "--images", "set", "--agreement", "align", *captions)
    assert found["align_score(colours)"] == 1 and found["align_n"] == 4
    paired = {"lines": "order", "names": "name", "columns": "name", "beside": "a file beside each image"}
    assert found["captions"]["paired_by"] == paired[how]
    assert "left_out" not in found
