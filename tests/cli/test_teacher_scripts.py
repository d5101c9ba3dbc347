"""The scripts around a small teacher: Fashion-MNIST as captioned images, and the search for a tap."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny_pipeline as tiny
from made import nested
from tiny_pictures import save_tiny_pictures

from diffdistill.data.captioned import CaptionedData, load_captioned
from diffdistill.errors import UserError

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "train" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *argv])
    module.main()


def test_fashion_mnist_becomes_captioned_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion = script("fashion_mnist")
    monkeypatch.setattr(fashion, "PARTS", {"train": ("train", 3), "test": ("t10k", 2)})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    for stem, rows in (("train", pixels[:3]), ("t10k", pixels[3:])):
        for name, header, data in (("images-idx3", 16, rows), ("labels-idx1", 8, np.arange(len(rows), dtype=np.uint8))):
            with gzip.open(tmp_path / f"{stem}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + data.tobytes())
    out = tmp_path / "out"
    call(fashion, monkeypatch, "--out", str(out), "--files", str(tmp_path))
    made = load_captioned(CaptionedData(str(out / "train.npz"), str(out / "train.csv")))
    assert made.names == ["t-shirt", "trousers", "pullover"] and made.images.shape == (3, 3, 32, 32)
    assert (made.images[:, 0, 2:-2, 2:-2].numpy() == 255 - pixels[:3]).all()  # dark on white, with a margin
    assert (made.images[:, :, :2] == 255).all() and (made.images[:, :1] == made.images).all()
    assert (out / "names.txt").read_text().split() == ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal",
                                                       "shirt", "sneaker", "bag", "ankle", "boot"]  # fmt: skip
    with pytest.raises(UserError, match="there already"):
        call(fashion, monkeypatch, "--out", str(out), "--files", str(tmp_path))
    with gzip.open(tmp_path / "t10k-labels-idx1-ubyte.gz", "wb") as file:
        file.write(bytes(9))
    with pytest.raises(UserError, match="expected 10"):
        call(fashion, monkeypatch, "--out", str(tmp_path / "other"), "--files", str(tmp_path))
    assert not (tmp_path / "other").exists()


def test_the_search_compares_taps_from_one_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = script("search_tap")
    settings = {
        "data__source": str(save_tiny_pictures(tmp_path / "pictures")),
        "network__autoencoder": str(tiny.save_tiny_pipeline(tmp_path / "tiny") / "vae"),
        "network__block_out_channels": [32, 32], "network__text_width": 32, "network__text_layers": 1,
        "network__self_conditioning__tap": "up.0",  # the run without it has none all the same
        "optimizer__learning_rate": 1e-30,
    }  # fmt: skip
    recipe = {"method": {"class_path": "diffdistill.methods.LatentDiffusion", "init_args": nested(settings)}}
    recipe |= {"training": {"samples": 8, "batch_size": 4, "cpu": True}, "output_dir": str(tmp_path / "run")}
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe))
    argv = [str(config), "--taps", "mid", "--samples", "8", "--out", str(tmp_path / "taps")]
    call(search, monkeypatch, *argv)
    found = json.loads(capsys.readouterr().out)
    # nothing is learnt at this rate, so with one start, and the same images, noise and times, losses are equal
    assert found["taps"].keys() == {"none", "mid"} and found["seeds"] == 1
    assert found["taps"]["mid"]["difference"] == pytest.approx(0, abs=1e-6)
    assert "tap: null" in (tmp_path / "taps" / "none-0" / "config.yaml").read_text()
    monkeypatch.setattr(search, "train", None)  # a search that is there is not made again
    call(search, monkeypatch, *argv)
    assert json.loads(capsys.readouterr().out) == found
    with pytest.raises(UserError, match="another recipe, length or data"):
        call(search, monkeypatch, *argv[:-4], "--samples", "4", *argv[-2:])
    with pytest.raises(UserError, match="blocks that others run after are down.0, down.1, mid, up.0"):
        call(search, monkeypatch, str(config), "--taps", "up.1", "--out", str(tmp_path / "other"))
