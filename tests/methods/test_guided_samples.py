"""A score model of the teacher's guided samples: on a Gaussian mixture it draws what the guided sampler draws."""

from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline as tiny
import torch
from made import made

from diffdistill.distill import SampleRandom, denoising_loss
from diffdistill.errors import UserError
from diffdistill.methods import GuidedSamples, SwiftBrush, teacher_pairs
from diffdistill.models.teacher import load_teacher
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(teacher_pairs, "user_cache", lambda: tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    tiny.save_tiny_pipeline(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("red apple\nblue car\n")
    return tmp_path


def build(folder: Path, kind: Any = GuidedSamples, **more: Any) -> Any:
    named = {"teacher__source": str(folder / "teacher"), "prompts": str(folder / "prompts.txt")}
    return made(kind, **{**named, **more})


def test_its_loss_is_that_of_denoising_the_pairs(folder: Path) -> None:
    method = build(folder, pairs__count=4, pairs__steps=2)
    method.prepare("cpu")
    (phase,) = method.phases(0)
    random = SampleRandom(3, range(5))
    value, _ = phase.loss(method.batch([0] * 5, random), random, {})
    rows = random.integers("pair", 4).tolist()
    x0, cond = method.pairs.samples[rows], method.embedded([row % 2 for row in rows])
    t = method.schedule.timestep(random.uniform("time"), 0.0, 1.0)
    noise = random.normal("noise", x0.shape[1:])
    torch.testing.assert_close(value, denoising_loss(method.teacher.denoiser(), x0, t, noise, cond, "v"))


def test_its_product_is_a_pipeline_that_can_be_a_teacher(folder: Path) -> None:
    method = build(folder, pairs__count=4, pairs__steps=2, optimizer__learning_rate=1e-2)
    (folder / "run").mkdir()
    exported = Trainer(method, TrainingSettings(16, 4, cpu=True, ema_decay=0.0), folder / "run").fit()
    other, first = load_teacher(exported), load_teacher(folder / "teacher")
    assert other.schedule.last == first.schedule.last and other.digest() != first.digest()
    student = build(folder, SwiftBrush, teacher__source=str(exported), guidance_scale=1.0, noise_ratio=2.5)
    weights = dict(student.networks["student"].named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in other.backbone.named_parameters())


def test_without_pairs_there_is_nothing_to_learn(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pairs.count is 0; there is nothing to learn from"):
        build(folder, pairs__count=0)
