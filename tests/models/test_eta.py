"""Noise while sampling: DDIM's eta by hand and as the stock pipeline has it, each picture's from its own generator."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipeline as tiny
import torch
from PIL import Image

from diffdistill.cli.main import main
from diffdistill.comparison.generated import Generated
from diffdistill.diffusion import FlowSchedule, GaussianTeacher, ddim
from diffdistill.errors import UserError
from diffdistill.models.any_step_pipeline import AnyStepModel, load_any_step, save_any_step
from diffdistill.models.generate import generate, sampler_settings
from diffdistill.models.teacher import load_teacher
from diffdistill.models.two_times import TwoTimeUNet, add_second_time

PROMPTS = ["red apple", "blue car", "red apple"]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_tiny_pipeline(tmp_path_factory.mktemp("stock") / "model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts: Any = load_teacher(str(tiny.save_tiny_pipeline(tmp_path_factory.mktemp("tiny")))).pipeline
    network = TwoTimeUNet(add_second_time(parts.unet)).requires_grad_(False)
    folder = tmp_path_factory.mktemp("any_step")
    save_any_step(AnyStepModel(parts, network, FlowSchedule(shift=1.5), 1.0, 0.5), folder)
    return folder


def made(model: Any, steps: int, batch_size: int = 32, **more: Any) -> torch.Tensor:
    return torch.cat(list(generate(model, PROMPTS, steps, 1.0, seed=3, batch_size=batch_size, **more)))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kind", ["stock", "folder"])
def test_eta_0_is_the_default_to_the_bit(kind: str, steps: int, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(kind))
    assert torch.equal(made(model, steps), made(model, steps, eta=0.0))


@pytest.mark.parametrize(("steps", "eta"), [(1, 1.0), (2, 1.0), (4, 0.5), (8, 1.0)])
def test_any_step_pictures_with_noise_are_ddims_by_hand(folder: Path, steps: int, eta: float) -> None:
    model = load_any_step(folder)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]

    def draw() -> torch.Tensor:
        return torch.cat([torch.randn((1, 4, 4, 4), generator=g) for g in generators])

    ids = model.pipeline.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=8)["input_ids"]
    cond, x = model.pipeline.text_encoder(torch.tensor(ids))[0], draw()
    times = [1.5 * t / (1 + 0.5 * t) for t in (1 - k / steps for k in range(steps))] + [0.0]
    for t, end in zip(times, times[1:], strict=False):
        s = end if steps > 1 else 0.5 * t
        v = model.network(x, torch.full((3,), 1000 * t), torch.full((3,), 1000 * s), cond)
        x0, eps = x - t * v, x + (1 - t) * v
        # sigma' / sigma of what variance the posterior of x' given x and x0 has; alpha = 1 - t
        std = eta * end / t * max(t**2 - ((1 - t) / (1 - end) * end) ** 2, 0) ** 0.5
        x = (1 - end) * x0 + max(end**2 - std**2, 0) ** 0.5 * eps + std * draw()
    expected = model.pipeline.vae.decode(x / 0.5).sample.clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(made(str(folder), steps, eta=eta), expected, rtol=0, atol=1e-4)
    assert (steps == 1) == bool(torch.equal(made(str(folder), steps, eta=eta), made(str(folder), steps)))


@pytest.mark.parametrize(("steps", "eta"), [(2, 1.0), (4, 0.3), (5, 1.0)])
def test_stock_pictures_with_noise_are_the_pipelines(stock: str, steps: int, eta: float) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(stock)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
    expected = pipeline(
        PROMPTS, num_inference_steps=steps, guidance_scale=1, generator=generators, output_type="pt", eta=eta
    ).images  # fmt: skip
    found = made(stock, steps, eta=eta)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)
    assert not torch.equal(found, made(stock, steps))


@pytest.mark.parametrize("kind", ["stock", "folder"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_do_not_matter(kind: str, batch_size: int, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(kind))
    torch.testing.assert_close(made(model, 3, batch_size, eta=1.0), made(model, 3, eta=1.0), rtol=0, atol=1e-5)


def test_each_sample_has_the_noise_of_its_own_generator() -> None:
    flow = FlowSchedule()
    teacher = GaussianTeacher(flow, 0.7, 0.4, "flow")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([1.0, 0.7, 0.3], dtype=torch.float64)

    def run(rows: slice) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(4)[rows]]
        return ddim(lambda x, t: teacher(x, t, None), x[rows], flow, times, eta=1.0, generator=generators)

    whole = run(slice(0, 4))
    assert torch.equal(torch.cat([run(slice(0, 1)), run(slice(1, 4))]), whole)
    assert len({row[0].item() for row in whole}) == 4
    with pytest.raises(ValueError, match="1 generators for 4 samples"):
        ddim(lambda x, t: teacher(x, t, None), x, flow, times, eta=1.0, generator=[torch.Generator()])


def test_a_products_index_says_its_eta(folder: Path, tmp_path: Path) -> None:
    model = load_any_step(folder)
    plain = model.digest()
    model.eta = 1.0
    assert model.digest() != plain and sampler_settings(model)["eta"] == 1.0
    save_any_step(model, tmp_path / "again")
    again = str(tmp_path / "again")
    assert load_any_step(again).eta == 1.0 and load_any_step(folder).eta == 0.0
    assert "eta" not in json.loads((folder / "model_index.json").read_text())
    assert torch.equal(made(again, 4), made(str(folder), 4, eta=1.0))
    assert torch.equal(made(again, 4, eta=0.0), made(str(folder), 4))
    for bad in (-0.5, 2, "nan"):
        index = json.loads((folder / "model_index.json").read_text())
        (tmp_path / "again" / "model_index.json").write_text(json.dumps({**index, "eta": bad}))
        with pytest.raises(UserError, match=r"eta .* must be in \[0, 1\]"):
            load_any_step(again)


@pytest.mark.parametrize(
    "scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_a_scheduler_without_eta_refuses_one(scheduler: str, stock: str, tmp_path: Path, capsys: Any) -> None:
    import diffusers

    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(stock)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "model")
    command = ["generate", "--model", str(tmp_path / "model"), "--prompt", "red apple", "--steps", "2"]
    assert main([*command, "--eta", "1", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "eta is 1" in error and f"{scheduler} takes none" in error
    assert not (tmp_path / "out").exists()
    assert main([*command, "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan", "inf"])
@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["eval", "gen", "--prompts", "p.txt"]])
def test_values_that_are_no_share_are_refused(
    command: list[str], value: str, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main([*command, "--model", "m", "--out", str(tmp_path / "out"), f"--eta={value}"]) == 2
    error = capsys.readouterr().err
    assert f"--eta is {value}" in error and len(error.splitlines()) == 1
    with pytest.raises(UserError, match=f"eta is {value}"):
        made(str(folder), 1, eta=float(value))


def test_the_commands_hand_it_on_and_records_name_it(folder: Path, stock: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    shared = ["--model", str(folder), "--prompts", str(tmp_path / "prompts.txt"), "--steps", "4", "--eta", "1"]
    assert main(["generate", *shared, "--seed", "3", "--out", str(tmp_path / "one")]) == 0
    assert main(["eval", "gen", *shared, "--seed", "3", "--out", str(tmp_path / "two")]) == 0
    expected = (made(str(folder), 4, eta=1.0).permute(0, 2, 3, 1) * 255).round().numpy()
    for name in ("one", "two"):
        for i in range(3):
            found = np.asarray(Image.open(tmp_path / name / f"0000{i}.png")).astype(int)
            assert abs(found - expected[i]).max() <= 1
    model = load_any_step(folder)
    plain, noisy = (Generated(model, PROMPTS, 3, 4, 1.0, 0, eta) for eta in (None, 1.0))
    assert "eta" not in plain.made_from()["made_from"] and noisy.made_from()["made_from"]["eta"] == 1.0
    assert noisy.name == f"{plain.name}, eta 1"
    for loaded in (model, load_teacher(stock)):
        assert sampler_settings(loaded, 0.5) == {**sampler_settings(loaded), "eta": 0.5}
    assert main(["eval", "calc", "--images", str(folder), "--reference", "x", "--eta", "1"]) == 2
    assert "goes with --model" in capsys.readouterr().err
