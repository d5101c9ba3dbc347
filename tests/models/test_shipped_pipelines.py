"""The embedded teacher and student are stock pipelines that load offline and draw what they are asked for."""

import socket
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

ASSETS = Path(__file__).parents[2] / "assets"
COLOURS = ("red", "green", "blue")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 sets (it is read once, at the import), and no connection at all."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("loader", [DiffusionPipeline, StableDiffusionPipeline])
@pytest.mark.parametrize(("name", "steps", "guidance"), [("student", 1, 1.0), ("teacher", 2, 4.0)])
def test_hearts_have_the_colour_that_was_asked_for(
    offline: None, loader: type, name: str, steps: int, guidance: float
) -> None:
    pipeline = loader.from_pretrained(ASSETS / name)
    assert type(pipeline) is StableDiffusionPipeline
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        [f"{colour} heart, noto" for colour in COLOURS],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(0) for _ in COLOURS],
        output_type="pt",
    ).images
    assert pictures.shape == (3, 3, 64, 64) and torch.isfinite(pictures).all()
    assert pictures.min() >= 0 and pictures.max() <= 1
    means = pictures.mean((2, 3))  # (picture, channel)
    assert means.argmax(1).tolist() == [0, 1, 2]
    top = means.topk(2, dim=1).values
    assert (top[:, 0] - top[:, 1] > 0.05).all()


def test_the_students_one_step_is_at_the_noise_it_was_trained_at() -> None:
    scheduler = DDIMScheduler.from_pretrained(ASSETS / "student", subfolder="scheduler")
    scheduler.set_timesteps(1)
    last = scheduler.config.num_train_timesteps - 1
    assert scheduler.config.timestep_spacing == "trailing"
    assert scheduler.timesteps.tolist() == [last] and len(scheduler.alphas_cumprod) == last + 1
    alpha_bar = scheduler.alphas_cumprod[last].item()
    assert ((1 - alpha_bar) / alpha_bar) ** 0.5 == pytest.approx(2.5, rel=0.01)
    teacher = DDIMScheduler.from_pretrained(ASSETS / "teacher", subfolder="scheduler")
    torch.testing.assert_close(scheduler.alphas_cumprod, teacher.alphas_cumprod[: last + 1])


def test_what_ships_is_below_48_megabytes() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file() and not path.is_symlink()) < 72e6
