"""Consistency distillation as a method: the exported LCM pipeline is the student, and runs resume exactly."""

from pathlib import Path

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from safetensors.torch import load_file
from tiny_pictures import save_tiny_pictures

from diffdistill.distill import SampleRandom
from diffdistill.distill.consistency import consistency_sample
from diffdistill.errors import UserError
from diffdistill.methods import Consistency
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's latents are 32 x 32 on these images, so its UNet is told so."""
    folder = tmp_path_factory.mktemp("consistency")
    tiny.save_tiny_pipeline(folder / "teacher")
    config = folder / "teacher" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 4', '"sample_size": 32'))
    save_tiny_pictures(folder / "pictures")
    return folder


def build(folder: Path, **more) -> Consistency:
    options = {"guidance_scale": 3.0, "optimizer__learning_rate": 1e-3, "ema_decay": 0.9, **more}
    return made(Consistency, teacher__source=f"{folder}/teacher", data__source=f"{folder}/pictures", **options)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exported_pipeline_samples_as_the_student_does(folder: Path, tmp_path: Path, steps: int) -> None:
    from diffusers import DiffusionPipeline

    method = build(folder)
    with torch.no_grad():
        for p in method.networks["student"].parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    method.export(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    stock = pipeline(
        ["red apple"], num_inference_steps=steps, guidance_scale=1, latents=z, output_type="latent",
        generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip
    student, cond = method.teacher.denoiser(method.networks["student"]), method.teacher.embed(["red apple"])
    times, g = pipeline.scheduler.timesteps, torch.Generator().manual_seed(2)
    with torch.no_grad():
        ours = consistency_sample(student, z, times, cond, method.boundary, g)
    torch.testing.assert_close(stock, ours, rtol=1e-3, atol=1e-3)


def test_a_resumed_run_ends_in_the_same_weights(folder: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(16, batch_size=4, checkpoint_every=8, cpu=True)
    for run in ("whole", "resumed"):
        (tmp_path / run).mkdir()
    Trainer(build(folder), settings, tmp_path / "whole").fit()
    middle = str(tmp_path / "whole" / "checkpoint-0000000008")
    Trainer(build(folder), settings, tmp_path / "resumed", resume=middle).fit()
    for group in ("student", "average", "ema"):
        a, b = (load_file(tmp_path / run / "checkpoint-0000000016" / f"{group}.safetensors") for run in
                ("whole", "resumed"))  # fmt: skip
        assert all(torch.equal(a[key], b[key]) for key in a), group
    student, average = (load_file(tmp_path / "whole" / "checkpoint-0000000016" / f"{n}.safetensors") for n in
                        ("student", "average"))  # fmt: skip
    assert any(not torch.equal(student[key], average[key]) for key in student)


def test_only_the_student_is_given_a_gradient(folder: Path) -> None:
    method = build(folder)
    random = SampleRandom(0, range(4))
    loss, _ = method.phases(0)[0].loss(method.batch(range(4), random), random, {})
    loss.backward()
    assert all(
        p.grad is None for net in (method.networks["average"], method.teacher.backbone) for p in net.parameters()
    )
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.networks["student"].parameters())


@pytest.mark.parametrize(("bad", "what"), [({"grid": 30}, "30 steps do not divide"), ({"ema_decay": 1.0}, "ema_decay")])
def test_bad_input_is_named(folder: Path, bad: dict, what: str) -> None:
    with pytest.raises(UserError, match=what):
        build(folder, **bad)
