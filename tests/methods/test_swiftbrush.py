"""Student, phases and export of SwiftBrush on a tiny random pipeline."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tiny_pipeline as tiny
import torch
from made import made
from PIL import Image

from diffdistill.cli.main import main
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.methods import SwiftBrush
from diffdistill.models.generate import generate
from diffdistill.models.lora import adapters_off
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def teacher(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher", request.param)
    return str(folder)


def build(folder: str, **more) -> SwiftBrush:
    return made(
        SwiftBrush, teacher__source=f"{folder}/teacher", prompts=f"{folder}/prompts.txt", fake__lora__rank=2, **more
    )


@pytest.mark.parametrize("fake_score", ["lora", "full"])
def test_vsd_vanishes_before_the_fake_score_has_learnt(teacher: str, fake_score: str) -> None:
    method = build(teacher, fake__network=fake_score)
    random = SampleRandom(0, range(4))
    loss, logs = method.phases(0)[0].loss(method.batch([0, 1, 0, 1], random), random, {})
    assert logs["grad_rms"].item() < 1e-6 and loss.item() < 1e-10


def test_adapters_off_is_the_teacher_and_the_base_is_shared(teacher: str) -> None:
    plain, method = build(teacher, fake__network="full"), build(teacher, fake__network="lora")
    fake = method.networks["fake"]
    assert fake is method.teacher.backbone
    with torch.no_grad():
        for name, p in fake.named_parameters():
            if p.requires_grad:
                assert "lora" in name
                p.normal_()
    x, t, cond = torch.randn(2, 4, 4, 4), torch.tensor([5, 700]), method.embedded([0, 1])
    expected = plain.teacher.backbone(x, t, cond)
    with adapters_off(fake):
        torch.testing.assert_close(fake(x, t, cond), expected)
    assert (fake(x, t, cond) - expected).abs().max() > 1e-3


def test_in_the_warm_up_the_fake_score_alone_learns(teacher: str, tmp_path: Path) -> None:
    method = build(teacher, fake__network="full", fake__warmup=2, optimizer__learning_rate=1e-3)
    assert [[p.name for p in method.phases(step)] for step in (1, 2)] == [["fake"], ["student", "fake"]]
    before = {name: [p.clone() for p in net.parameters()] for name, net in method.networks.items()}
    Trainer(method, TrainingSettings(8, batch_size=4, cpu=True), tmp_path).fit()
    changed = {
        name: any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))
        for name, net in method.networks.items()
    }
    assert changed == {"student": False, "fake": True}


def test_the_times_judged_come_down_with_the_progress_of_the_run(teacher: str) -> None:
    method = build(teacher, times__t_max_final=0.1)
    random, seen = SampleRandom(0, range(64)), {}
    for progress in (0.0, 0.5, 1.0):
        method.progress = progress
        method.begin_step(0)
        with patch.object(method.schedule, "add_noise", wraps=method.schedule.add_noise) as noised:
            method.phases(0)[0].loss(method.batch([0, 1] * 32, random), random, {})
        times = noised.call_args.args[2]
        seen[progress] = times.min().item(), times.max().item()
    assert all(low >= 20 for low, _ in seen.values())
    assert [high // 100 for _, high in seen.values()] == [9, 5, 0]


def test_the_digest_does_not_depend_on_how_the_scheduler_lists_its_defaults(teacher: str) -> None:
    one, other = load_teacher(f"{teacher}/teacher"), load_teacher(f"{teacher}/teacher")
    other.pipeline.scheduler.register_to_config(_use_default_values=["timestep_spacing", "prediction_type"])
    assert one.digest() == other.digest()


def test_the_digest_sees_every_weight_and_setting(teacher: str) -> None:
    first = load_teacher(f"{teacher}/teacher")
    found = {first.digest(), load_teacher(f"{teacher}/teacher").digest()}
    assert len(found) == 1
    last = load_teacher(f"{teacher}/teacher")
    max(last.pipeline.unet.parameters(), key=lambda p: p.numel()).view(-1)[-1] += 1
    scaled = load_teacher(f"{teacher}/teacher")
    scaled.pipeline.vae.register_to_config(scaling_factor=7.0)
    assert len(found | {last.digest(), scaled.digest()}) == 3
    list(generate(first, ["red apple"], 1, 1.0))
    assert first.digest() in found  # using it changes nothing


@pytest.mark.parametrize("noise_ratio", [None, 2.5])
def test_the_exported_pipeline_makes_the_students_picture(teacher: str, tmp_path: Path, noise_ratio) -> None:
    from diffusers import DiffusionPipeline

    method = build(
        teacher,
        fake__network="full",
        noise_ratio=noise_ratio,
        optimizer__learning_rate=1e-3,
        optimizer__betas=(0.0, 0.99),
        fake__optimizer__betas=(0.0, 0.99),
    )
    settings = TrainingSettings(32, batch_size=4, cpu=True, log_every=1)
    folder = Trainer(method, settings, tmp_path).fit()
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    stock = pipeline(
        ["red apple", "blue car"], num_inference_steps=1, guidance_scale=1, latents=z, output_type="pt"
    ).images  # fmt: skip
    with torch.no_grad():
        t = torch.full((2,), int(method.student.time))
        from diffdistill.diffusion import Denoiser
        from diffdistill.models.families.unet import UNetBackbone

        denoiser = Denoiser(UNetBackbone(pipeline.unet), method.schedule, method.teacher.prediction_type)
        ours = method.teacher.latents.images(denoiser(z, t, method.embedded([0, 1])).x0)
    assert (stock - ours).abs().max() < 2 / 255

    if noise_ratio is None:
        return  # a process of its own takes seconds; once a kind of prediction will do
    alone = (
        "import sys, torch; sys.modules['diffdistill'] = None; from diffusers import DiffusionPipeline; "
        "p = DiffusionPipeline.from_pretrained(sys.argv[1]); g = torch.Generator().manual_seed(3); "
        "p('red apple', num_inference_steps=1, guidance_scale=1, generator=g).images[0].save(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", alone, str(folder), str(tmp_path / "alone.png")], check=True)
    command = ["generate", "--model", str(folder), "--prompt", "red apple", "--seed", "3"]
    assert main([*command, "--out", str(tmp_path / "ours.png")]) == 0
    pictures = [np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("alone.png", "ours.png")]
    assert abs(pictures[0] - pictures[1]).max() < 2


@pytest.mark.parametrize("residual", ["sds", "sjc", "csd", "asd", "sdi"])
def test_the_rest_of_the_family_runs_without_a_fake_score(teacher: str, residual: str) -> None:
    method = build(teacher, residual=residual)
    random = SampleRandom(0, range(2))
    loss, _ = method.phases(0)[0].loss(method.batch([0, 1], random), random, {})
    loss.backward()
    assert set(method.networks) == {"student"} and torch.isfinite(loss)


@pytest.mark.parametrize(
    "bad",
    [
        {"weight": "sigma3"},
        {"residual": "vds"},
        {"times__t_min": 0.99},
        {"times__t_max_final": 0.99},
        {"times__t_max_final": 0.0201},
    ],
)
def test_bad_numbers_and_names_are_refused_at_once(teacher: str, bad: dict) -> None:
    with pytest.raises((UserError, ValueError), match=str(next(iter(bad.values())))):
        build(teacher, **bad)


def test_bad_teachers_are_one_line_errors(teacher: str, tmp_path: Path, monkeypatch) -> None:
    prompts = f"{teacher}/prompts.txt"
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(UserError, match="no prompt"):
        made(SwiftBrush, teacher__source=f"{teacher}/teacher", prompts=str(empty))
    with pytest.raises(UserError, match="nowhere"):
        made(SwiftBrush, teacher__source=str(tmp_path / "nowhere"), prompts=prompts)
    pickled = tiny.save_tiny_pipeline(tmp_path / "pickled")
    (pickled / "unet" / "diffusion_pytorch_model.safetensors").rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        made(SwiftBrush, teacher__source=str(pickled), prompts=prompts)
    other = tiny.save_tiny_pipeline(tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(UserError, match="FluxPipeline; Stable Diffusion 1.x"):
        made(SwiftBrush, teacher__source=str(other), prompts=prompts)
    for adapters in ({"fake__lora__targets": ("to_qq",)}, {"fake__lora__rank": 0}, {"fake__lora__targets": ("norm1",)}):
        with pytest.raises(UserError, match="lora|rank is 0"):
            made(SwiftBrush, teacher__source=f"{teacher}/teacher", prompts=prompts, **adapters)
    odd = tiny.save_tiny_pipeline(tmp_path / "odd")
    config = odd / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "direction"))
    with pytest.raises(UserError, match="direction"):
        made(SwiftBrush, teacher__source=str(odd), prompts=prompts)


def test_broken_teachers_are_one_line_errors(teacher: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    prompts = f"{teacher}/prompts.txt"

    def refused(folder: Path, says: str) -> None:
        with pytest.raises(UserError, match=says) as caught:
            made(SwiftBrush, teacher__source=str(folder), prompts=prompts)
        assert "\n" not in str(caught.value)

    torn = tiny.save_tiny_pipeline(tmp_path / "torn")
    weights = torn / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(torn, "torn")
    wordless = tiny.save_tiny_pipeline(tmp_path / "wordless")
    shutil.rmtree(wordless / "tokenizer")
    refused(wordless, "tokenizer_config.json is missing")
    holed = tiny.save_tiny_pipeline(tmp_path / "holed")
    weights = holed / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("conv_in")}, weights)
    refused(holed, "conv_in")
    timeless = tiny.save_tiny_pipeline(tmp_path / "timeless")
    config = timeless / "scheduler" / "scheduler_config.json"
    config.write_text(
        json.dumps({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "prediction_type": "epsilon"})
    )
    refused(timeless, "no beta schedule")


def test_noise_prediction_where_no_signal_is_left_is_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\n")
    for kind in ("epsilon", "v_prediction"):
        folder = tiny.save_tiny_pipeline(tmp_path / kind, kind)
        config = folder / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": True}))
    with pytest.raises(UserError, match="set noise_ratio"):
        made(SwiftBrush, teacher__source=str(tmp_path / "epsilon"), prompts=str(prompts), fake__lora__rank=2)
    made(
        SwiftBrush, teacher__source=str(tmp_path / "epsilon"), prompts=str(prompts), fake__lora__rank=2, noise_ratio=2.5
    )
    made(SwiftBrush, teacher__source=str(tmp_path / "v_prediction"), prompts=str(prompts), fake__lora__rank=2)


def test_half_export_stores_float16(teacher: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    build(teacher, export__half=True).export(tmp_path)
    for part, dtype in (("unet", torch.float16), ("vae", torch.float16), ("text_encoder", torch.float32)):
        (file,) = (tmp_path / part).glob("*.safetensors")
        assert {v.dtype for v in load_file(file).values() if v.is_floating_point()} == {dtype}
