"""`diffdistill codec` as people use it: links, odd names, empty variables, wrong devices; one line each."""

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, TiffImagePlugin
from safetensors.torch import load, save
from small_codec import picture, save_small_codec

from diffdistill.cli.main import main
from diffdistill.codec import Codec
from diffdistill.data.save import save_picture
from diffdistill.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("in/a.png", "in/@eaDir/thumb.png", "real/b.png"):
        draw(tmp_path / name, picture(20, 30))
    (tmp_path / "in" / "album").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "c.heic").write_bytes(b"x")
    return tmp_path / "in"


def draw(file: Path, image: torch.Tensor) -> None:
    save_picture(file, image.float() / 255)


def encode(model: Path, *arguments: object) -> int:
    return main(["codec", "encode", "-m", str(model), *map(str, arguments)])


def test_folders_behind_links_are_read_and_what_is_left_out_is_said(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(model, photos, "-o", f"{tmp_path}/results.v2/", "--recon", tmp_path / "recon") == 0
    made = {p.relative_to(tmp_path / "results.v2").as_posix() for p in (tmp_path / "results.v2").rglob("*.ddc")}
    assert made == {"a.ddc", "album/b.ddc"}
    assert capsys.readouterr().err == f"note: files of {photos} that are left out: 1 (.heic)\n"


def test_names_and_numbers_that_are_wrong(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["", "-o", "out"], "an input is an empty name"),
        ([photos, "-o", ""], "--out is an empty name"),
        ([photos, "-o", "both.ddc"], "--out both.ddc names a file, and there is more than one input or a folder"),
        ([photos, "-o", "out", "--target_bpp", "nan"], "--target_bpp is nan; it must be a number above 0"),
        ([photos, "-o", "out", "--device", "gpu"], "device is 'gpu', which cannot be used here"),
        ([photos, "-o", "out", "--device", "cuda:99"], "device is 'cuda:99', which cannot be used here"),
    ):
        assert encode(model, *arguments) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
        assert says in line, line
    assert not Path("out").exists()
    assert encode(model, photos / "a.png", "-o", photos / "a.ddc", "--target_bpp", "1e308") == 0
    capsys.readouterr()
    assert main(["codec", "info", str(photos)]) == 2
    assert f"{photos} is a folder" in capsys.readouterr().err


def test_one_file_that_fails_is_named_and_the_others_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        draw(tmp_path / f"{name}.png", picture(20, 30 if name == "b" else 20))
    whole = Codec.encode

    def short_of_memory(self: Codec, image: torch.Tensor, *rest: object) -> bytes:
        if image.shape[2] == 30:
            raise RuntimeError("can't allocate memory")
        return whole(self, image, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Codec, "encode", short_of_memory)
    assert encode(model, *(tmp_path / f"{n}.png" for n in "abc"), "-o", tmp_path / "out") == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.ddc", "c.ddc"]
    assert f"{tmp_path / 'b.png'}: can't allocate memory" in capsys.readouterr().err


def test_names_that_are_no_text(model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    encoded = io.BytesIO()
    Image.fromarray(picture(20, 20).permute(1, 2, 0).numpy()).save(encoded, "PNG")
    Path(os.fsdecode(name)).write_bytes(encoded.getvalue())
    done = subprocess.run(
        [sys.executable, "-m", "diffdistill", "codec", "encode", "-m", str(model), name, "-o", str(tmp_path / "out")],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9.png" in done.stdout and len(list((tmp_path / "out").iterdir())) == 1


def test_a_reader_that_ends_is_no_error(model: Path, tmp_path: Path) -> None:
    data = Codec(model).encode(picture(20, 20))
    for n in range(200):
        (tmp_path / f"{n}.ddc").write_bytes(data)
    command = f"{sys.executable} -m diffdistill codec info {tmp_path}/*.ddc | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.stdout.splitlines()[-1] in ("0", "141")


def test_signed_values_of_eight_bits_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2
    Image.new("L", (20, 20), 200).save(tmp_path / "a.tif", tiffinfo=tags)
    assert encode(model, tmp_path / "a.tif", "-o", tmp_path / "a.ddc") == 2
    assert "has signed values; only unsigned ones are read" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(model: Path, tmp_path: Path) -> None:
    for name in ("decoder.out.bias", "latent_codec.mean.0.weight"):
        folder = tmp_path / name
        folder.mkdir()
        tensors = load((model / "codec.safetensors").read_bytes())
        tensors[name].flatten()[0] = float("nan")
        (folder / "codec.safetensors").write_bytes(save(tensors))
        (folder / "config.json").write_bytes((model / "config.json").read_bytes())
        with pytest.raises(UserError, match=f"{name} has values that are not finite"):
            Codec(folder)


def test_what_an_analysis_is_of(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    codec, other = Codec(model), copy.copy(Codec(model))
    other.fingerprint = "0" * 64
    assert config["channels"] == codec.analyse(picture(20, 20)).y.shape[1]
    with pytest.raises(ValueError, match="analysed by another codec"):
        codec.encode(other.analyse(picture(20, 20)))
    for wrong in (Image.new("RGB", (8, 8)), "a.png", None):
        with pytest.raises(ValueError, match="uint8 tensor"):
            codec.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes the bytes of a file"):
        codec.decode("a.ddc")  # type: ignore[arg-type]


def test_images_can_be_changed_and_differentiated_through(model: Path) -> None:
    codec = Codec(model)
    x = codec.decode(codec.encode(picture(20, 20)))
    x[:, :5] = 0
    weight = torch.ones(1, requires_grad=True)
    (weight * x).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_codec_is_the_same_whatever_the_default_type_is(model: Path, dtype: torch.dtype) -> None:
    image = picture(30, 40)
    expected = Codec(model).encode(image)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        codec = Codec(model)
        assert torch.get_default_dtype() == dtype
        assert codec.encode(image) == expected and codec.decode(expected).shape == image.shape
    finally:
        torch.set_default_dtype(before)
