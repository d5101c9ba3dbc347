"""The folder of a model of two times: its sampler, its images, and one step of it as a stock pipeline."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipeline as tiny
import torch
from PIL import Image

from diffdistill.cli.main import main
from diffdistill.diffusion import FlowSchedule
from diffdistill.errors import UserError
from diffdistill.models.any_step_pipeline import (
    AnyStepModel,
    export_stock_one_step,
    is_any_step,
    load_any_step,
    save_any_step,
)
from diffdistill.models.ema import averaged_copy, follow
from diffdistill.models.generate import generate, sampler_settings
from diffdistill.models.teacher import load_teacher
from diffdistill.models.two_times import TwoTimeUNet, add_second_time


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AnyStepModel:
    parts: Any = load_teacher(str(tiny.save_tiny_pipeline(tmp_path_factory.mktemp("tiny")))).pipeline
    network = TwoTimeUNet(add_second_time(parts.unet))
    torch.manual_seed(1)
    for p in parts.unet.time_embedding.interval.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return AnyStepModel(parts, network.requires_grad_(False), FlowSchedule(shift=1.5), 1.0, 0.5)


@pytest.fixture(scope="module")
def folder(model: AnyStepModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any_step")
    save_any_step(model, folder)
    return folder


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 1.0), (4, 3.0)])
def test_generated_pictures_are_the_networks_own(
    model: AnyStepModel, folder: Path, steps: int, guidance: float
) -> None:
    prompts = ["red apple", "blue car", "red apple"]
    made = torch.cat(list(generate(str(folder), prompts, steps, guidance, seed=3, batch_size=2)))
    z = torch.cat([torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(s)) for s in (3, 4, 5)])
    ids = model.pipeline.tokenizer(prompts, padding="max_length", truncation=True, max_length=8)["input_ids"]
    empty = model.pipeline.tokenizer([""], padding="max_length", max_length=8)["input_ids"]
    cond, null = (model.pipeline.text_encoder(torch.tensor(i))[0] for i in (ids, empty))
    times = [1.5 * t / (1 + 0.5 * t) for t in (1 - k / steps for k in range(steps))] + [0.0]
    x = z
    for t, end in zip(times, times[1:], strict=False):  # by hand, from the network
        s = end if steps > 1 else 0.5 * t
        both = [model.network(x, torch.full((3,), 1000 * t), torch.full((3,), 1000 * s), c.expand_as(cond))
                for c in (cond, null)]  # fmt: skip
        samples = [x - t * v for v in both]
        x0 = samples[1] + guidance * (samples[0] - samples[1])
        x0 = x0 * (samples[0].flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1))[:, None, None, None]
        x = x + (end - t) * (x - x0) / t
    expected = model.pipeline.vae.decode(x / 0.5).sample.clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_one_step_is_a_stock_pipeline_and_needs_no_code_of_ours(
    model: AnyStepModel, folder: Path, tmp_path: Path
) -> None:
    export_stock_one_step(model, tmp_path / "stock")
    ours = next(generate(str(folder), ["red apple", "blue car"], 1, 1.0))
    alone = (
        "import sys, torch; sys.modules['diffdistill'] = None; from diffusers import DiffusionPipeline; "
        f"p = DiffusionPipeline.from_pretrained({str(tmp_path / 'stock')!r}); "
        "g = [torch.Generator().manual_seed(i) for i in range(2)]; "
        "prompts = ['red apple', 'blue car']; "
        "x = p(prompts, num_inference_steps=1, guidance_scale=1, generator=g, output_type='np').images; "
        f"import numpy; numpy.save({str(tmp_path / 'x.npy')!r}, x)"
    )
    subprocess.run([sys.executable, "-c", alone], check=True, capture_output=True)
    stock = torch.from_numpy(np.load(tmp_path / "x.npy")).permute(0, 3, 1, 2)
    assert (stock - ours).abs().max() < 1e-4
    again = next(generate(str(tmp_path / "stock"), ["red apple", "blue car"], 1, 1.0))
    assert (again - ours).abs().max() < 1e-4
    assert torch.equal(next(generate(model, ["red apple", "blue car"], 1, 1.0)), ours)  # the export left it untouched


def test_the_command_generates_from_it(folder: Path, tmp_path: Path) -> None:
    command = ["generate", "--model", str(folder), "--prompt", "red apple", "--n", "2", "--steps", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    expected = torch.cat(list(generate(str(folder), ["red apple"] * 2, 2, 1.0)))
    for i in range(2):
        read = np.asarray(Image.open(tmp_path / "out" / f"0000{i}.png")).astype(int)
        assert abs(read - (expected[i].permute(1, 2, 0) * 255).round().numpy()).max() <= 1


def test_digests_tell_models_apart(folder: Path, tmp_path: Path) -> None:
    first, second = load_any_step(folder), load_any_step(folder)
    assert first.digest() == second.digest()
    second.one_step_target_fraction = 0.4
    assert first.digest() != second.digest()


def test_with_more_steps_than_the_finest_the_network_gets_no_shorter_intervals(folder: Path, tmp_path: Path) -> None:
    model = load_any_step(folder)
    model.target_fraction, model.one_step_target_fraction = 0.5, 0.25
    model.finest_steps, model.schedule = 4, FlowSchedule()
    save_any_step(model, tmp_path / "again")
    model = load_any_step(tmp_path / "again")
    assert sampler_settings(model)["finest_steps"] == 4
    noise, cond = torch.zeros(1, *model.latent_shape), torch.zeros(1, 77, 1)
    told: list[float] = []

    def seen(x: torch.Tensor, time: torch.Tensor, earlier: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        told.append(round((time - earlier).item() / 1000, 6))
        return torch.zeros_like(x)

    model.network = seen
    for steps, expected in (
        (1, [0.25]),
        (2, [0.25] * 2),
        (4, [0.125] * 4),
        (8, [0.125] * 8),
        (16, [0.125] * 15 + [0.0625]),
    ):
        told.clear()
        model.sample(cond, cond, noise, steps, 1.0)
        assert told == expected
    for bad in (
        {"finest_steps": 1},
        {"finest_steps": "4"},
        {"finest_steps": True},
        {"finest_steps": float("inf")},
        {"target_fraction": 1.5},
        {"one_step_target_fraction": float("nan")},
    ):
        index = json.loads((folder / "model_index.json").read_text())
        (tmp_path / "again" / "model_index.json").write_text(json.dumps({**index, **bad}))
        with pytest.raises(UserError, match="no any-step model"):
            load_any_step(tmp_path / "again")


def test_what_is_no_such_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    stock = tiny.save_tiny_pipeline(tmp_path / "stock")
    assert is_any_step(folder) and not is_any_step(stock) and not is_any_step(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no any-step model"):
        load_any_step(stock)
    with pytest.raises(UserError, match="is a AnyStepPipeline; Stable Diffusion 1.x, 2.x"):
        load_teacher(str(folder))
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "model_index.json").write_text(json.dumps({"_class_name": "AnyStepPipeline"}))
    with pytest.raises(UserError, match="no any-step model") as caught:
        load_any_step(torn)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["schedule", "target_fraction", "one_step_target_fraction"])
def test_a_folder_without_a_key_is_refused_by_the_keys_name(folder: Path, tmp_path: Path, key: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index[key]
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    (old / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"no any-step model at .*: its model_index\.json has no {key}$"):
        load_any_step(old)


def test_an_averaged_copy_follows_and_warms_up() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = averaged_copy(network)
    before = [p.clone() for p in average.parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()
    network(torch.randn(4, 2))
    for updates, d in ((0, 0.1), (90, 0.9)):
        follow(average, network, 0.9, updates)
        before = [d * a + (1 - d) * b for a, b in zip(before, network.parameters(), strict=True)]
        for a, b in zip(average.parameters(), before, strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(average[1].running_mean, network[1].running_mean)
    assert all(p.requires_grad for p in average.parameters())
