"""`diffdistill codec` on grey, transparent, deep and profiled images, and on several files at a time."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, png_of_depth
from PIL import Image, ImageCms
from small_codec import picture, save_small_codec

from diffdistill.cli.codec.jobs import Job, run
from diffdistill.cli.codec.parallel import cores, threads_of_each
from diffdistill.cli.main import main
from diffdistill.codec.bitstream import from_bytes
from diffdistill.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_codec(tmp_path_factory.mktemp("codec")))


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["codec", *argv]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L"])
def test_a_grey_image_comes_back_as_a_grey_png(model: str, tmp_path: Path, form: str, mode: str) -> None:
    source, coded, again = tmp_path / "a.png", tmp_path / "a.ddc", tmp_path / "again.png"
    source.write_bytes(encoded(Image.fromarray(picture(70, 90)[0].numpy()).convert(mode), form))
    assert main(["codec", "encode", str(source), "-o", str(coded), "-m", model]) == 0
    assert from_bytes(coded.read_bytes()).grey
    assert main(["codec", "decode", str(coded), "-o", str(again), "-m", model]) == 0
    with Image.open(again) as opened:
        assert opened.mode == "L" and opened.size == (90, 70)


def test_what_is_dropped_is_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clear = Image.fromarray(picture(64, 64).permute(1, 2, 0).numpy()).convert("RGBA")
    clear.putalpha(100)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "a.png": encoded(clear, icc_profile=own),
        "b.png": encoded(clear, icc_profile=b"nonsense"),
        "c.png": png_of_depth(picture(64, 64).permute(1, 2, 0).numpy().astype(int) * 257, 16),
        "d.png": encoded(picture(64, 64).permute(1, 2, 0).numpy()),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    options = ["-o", str(tmp_path / "files"), "-m", model, "--eight_bit"]
    assert main(["codec", "encode", *(str(tmp_path / name) for name in files), *options, "--json"]) == 0
    said = [json.loads(line)["notices"] for line in capsys.readouterr().out.splitlines()]
    white = "transparent parts put on white"
    ignored = "a colour profile that cannot be used was ignored"
    assert said == [[white], [ignored, white], ["16 bits scaled to 8"], []]
    assert (tmp_path / "files/c.ddc").read_bytes() == (tmp_path / "files/d.ddc").read_bytes()  # 257 v of 16 bits is v
    assert main(["codec", "encode", str(tmp_path / "b.png"), *options, "--overwrite", "--alpha", "black"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"({ignored}; transparent parts put on black)")


def test_what_is_refused_by_name(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(data: bytes, *options: str) -> str:
        (tmp_path / "a.png").write_bytes(data)
        return refused(capsys, "encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.ddc"), "-m", model, *options)

    clear = Image.new("RGBA", (8, 8))
    assert "a.png has transparent parts, which are refused" in of(encoded(clear), "--alpha", "refuse")
    assert "only 8 bits per channel are read; --eight_bit scales them to 8" in of(encoded(np.zeros((8, 8), np.uint16)))
    assert "a.png has 32 bits per channel; only 8" in of(encoded(np.zeros((8, 8), np.float32), "TIFF"))
    assert "outside of [0, 1]" in of(encoded(np.full((8, 8), 2, np.float32), "TIFF"), "--eight_bit")
    assert "a.png is CMYK without a colour profile" in of(encoded(Image.new("CMYK", (8, 8)), "JPEG"))
    assert "--jobs is 0; it must be 1 or more" in of(encoded(Image.new("L", (8, 8))), "-j", "0")
    assert not (tmp_path / "a.ddc").exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch with one thread, since another number of threads may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_jobs_give_the_same_files_and_lines_in_order(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(6):
        side = 500 if i == 0 else 60 + i  # the first takes longest
        Image.fromarray(picture(side, 90, seed=i).permute(1, 2, 0).numpy()).save(photos / f"{i}.png")
    (photos / "3.png").write_bytes(b"no image")
    out: dict[str, list[str]] = {}
    for n in ("1", "3"):
        files, images = str(tmp_path / f"files{n}"), str(tmp_path / f"images{n}")
        assert main(["codec", "encode", str(photos), "-o", files, "-m", model, "-j", n, "--json"]) == 2
        said = capsys.readouterr()
        assert "3.png cannot be read as an image" in said.err and "1 of 6 files failed" in said.err
        assert main(["codec", "decode", files, "-o", images, "-m", model, "-j", n, "--json"]) == 0
        lines = (said.out + capsys.readouterr().out).splitlines()
        out[n] = [Path(json.loads(line)["file"]).stem for line in lines]
    assert out["1"] == out["3"] == ["0", "1", "2", "4", "5"] * 2
    for folder in ("files", "images"):
        made = [sorted((f.name, f.read_bytes()) for f in (tmp_path / f"{folder}{n}").iterdir()) for n in "13"]
        assert made[0] == made[1] and len(made[0]) == 5


def test_recon_is_what_decode_writes(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(picture(70, 90).permute(1, 2, 0).numpy()).save(photos / "a.jpg")
    Image.fromarray(picture(70, 90)[0].numpy()).save(photos / "b.png")
    out, recon, images = (str(tmp_path / name) for name in ("files", "recon", "images"))
    assert main(["codec", "encode", str(photos), "-o", out, "-m", model, "--recon", recon, "-j", "2"]) == 0
    assert main(["codec", "decode", out, "-o", images, "-m", model]) == 0
    for name in ("a.png", "b.png"):
        assert Path(recon, name).read_bytes() == Path(images, name).read_bytes()
    one = [str(photos / "a.jpg"), "-o", str(tmp_path / "a.ddc"), "-m", model, "--recon"]
    assert "should end in .png" in refused(capsys, "encode", *one, str(tmp_path / "a.jpg"))
    assert "--recon is -" in refused(capsys, "encode", *one, "-")
    assert not (tmp_path / "a.ddc").exists()


def test_threads_never_outnumber_cores() -> None:
    for jobs in range(1, 9):
        for there in range(1, 9):
            at_a_time, threads = threads_of_each(jobs, there, there)
            assert 1 <= at_a_time <= jobs and threads >= 1 and at_a_time * threads <= there
    before, seen = torch.get_num_threads(), []
    jobs_ = [Job(str(i), Path(str(i)), Path(str(i))) for i in range(4)]
    run(jobs_, lambda job: {"threads": seen.append(torch.get_num_threads())}, False, 2)
    assert max(seen) * min(2, cores()) <= cores() and torch.get_num_threads() == before


def test_a_progress_bar_is_for_terminals_and_several_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def fails(job: Job) -> dict[str, str]:
        if job.name == "1":
            raise UserError("1 is bad")
        return {"size": "8x8"}

    jobs_ = [Job(str(i), Path(str(i)), Path(str(i))) for i in range(3)]
    with pytest.raises(UserError, match="1 of 3 files failed"):
        run(jobs_, fails, False)
    said = capsys.readouterr()
    assert said.out == "0  8x8\n2  8x8\n" and said.err == "diffdistill: error: 1 is bad\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(UserError, match="1 of 3 files failed"):
        run(jobs_, fails, False)
    assert "3/3" in terminal.getvalue() and "1 is bad\n" in terminal.getvalue()
    assert capsys.readouterr().out == "0  8x8\n2  8x8\n"
    monkeypatch.setattr(sys, "stderr", one := Terminal())
    run(jobs_[:1], fails, False)
    assert one.getvalue() == ""
