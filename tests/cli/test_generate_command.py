"""`generate` gives the stock pipeline's images, whatever the batch size, and refuses bad input."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_pipeline as tiny
import torch
from PIL import Image

from diffdistill.cli.main import main

ROOT = Path(__file__).parents[2]


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_are_the_stock_pipelines(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    model = str(tiny.save_tiny_pipeline(tmp_path / "model"))
    for size in ("1", "3"):
        command = ["generate", "--model", model, "--prompt", "red apple", "--n", "3", "--steps", "2"]
        assert main([*command, "--batch_size", size, "--out", str(tmp_path / size)]) == 0
    pipeline = DiffusionPipeline.from_pretrained(model)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    stock = pipeline(
        ["red apple"] * 3, num_inference_steps=2, guidance_scale=1, generator=generators, output_type="np"
    ).images  # fmt: skip
    for i in range(3):
        one, three = (read(tmp_path / size / f"0000{i}.png") for size in ("1", "3"))
        assert abs(one - three).max() <= 1
        assert abs(three - stock[i] * 255).max() < 2
    assert main([*command, "--out", str(tmp_path / "grid.png")]) == 0
    assert read(tmp_path / "grid.png").shape == (8, 24, 3)


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "empty.txt").write_text("\n")
    out = str(tmp_path / "out")
    assert main(["generate", "--model", "m", "--prompts", str(tmp_path / "empty.txt"), "--out", out]) == 2
    assert "no prompt" in capsys.readouterr().err
    assert main(["generate", "--model", "m", "--prompt", "x", "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    for options, says in (
        (["--guidance", "nan"], "--guidance is nan"),
        (["--guidance", "inf"], "--guidance is inf"),
        (["--seed", str(10**20)], "--seed is 1"),
        (["--out", str(tmp_path / "file" / "x.png")], "file is a file, not a folder"),
        (["--model", "assets/teachr"], "no model at assets/teachr"),
    ):
        assert main(["generate", "--model", "m", "--prompt", "x", "--out", out, *options]) == 2
        error = capsys.readouterr().err
        assert says in error and len(error.splitlines()) == 1
    assert not Path(out).exists()


def test_overwriting_removes_what_was_generated_and_nothing_else(tmp_path: Path) -> None:
    model, out = str(tiny.save_tiny_pipeline(tmp_path / "model")), tmp_path / "out"
    out.mkdir()
    for name in ("00007.png", "grid.png", "2024-holiday.png", "1.png"):
        (out / name).write_text("old")
    command = ["generate", "--model", model, "--prompt", "red apple", "--out", str(out), "--grid"]
    assert main([*command, "--overwrite"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["00000.png", "1.png", "2024-holiday.png", "grid.png"]
    assert (tmp_path / "out-grid.png").is_file()  # a grid among the images would be measured as one of them
    shutil.rmtree(out)
    assert main(command) == 2 and not out.exists()


@pytest.mark.parametrize("options", [[], ["--grid"], ["--batch_size", "1"]])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_nothing_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], bad: float
) -> None:
    from safetensors.torch import load_file, save_file

    model, out = tiny.save_tiny_pipeline(tmp_path / "model"), tmp_path / "out"
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    save_file({**load_file(weights), "conv_out.bias": torch.full((4,), bad)}, weights, metadata={"format": "pt"})
    out.mkdir()
    (out / "00000.png").write_text("old")
    command = ["generate", "--model", str(model), "--prompt", "red apple", "--n", "3", "--overwrite", *options]
    capsys.readouterr()
    assert main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "image 00000.png" in error and "not finite" in error
    assert [path.read_text() for path in out.iterdir()] == ["old"]
    assert main([*command, "--out", str(tmp_path / "grid.png")]) == 2
    assert not (tmp_path / "grid.png").exists()


def test_a_grid_of_training_may_hold_what_is_not_finite(tmp_path: Path) -> None:
    from diffdistill.data.save import save_grid

    save_grid(tmp_path / "grid.png", torch.stack([torch.full((3, 4, 4), v) for v in (float("nan"), 0.0, 1.0)]), 3)
    assert read(tmp_path / "grid.png").reshape(4, 3, 4, 3).mean((0, 2, 3)).tolist() == [0, 0, 255]


def test_prompts_that_are_cut_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny.save_tiny_pipeline(tmp_path / "model"))
    (tmp_path / "prompts.txt").write_text("red apple\n" + "red " * 30 + "\n" + "blue " * 40 + "\n")
    rest = ["--model", model, "--prompts", str(tmp_path / "prompts.txt"), "--batch_size", "1", "--out"]
    for command in (["generate"], ["eval", "gen"]):
        capsys.readouterr()
        assert main([*command, *rest, str(tmp_path / command[-1])]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "longer than" in line or "truncated" in line]
        assert len(lines) == 1 and "2 of 3 different prompts are longer than the 8 tokens" in lines[0]
