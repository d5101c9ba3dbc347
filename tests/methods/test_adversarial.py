"""The adversarial term of SwiftBrush on a tiny random pipeline: what it adds, and where its gradient goes."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny_pipeline as tiny
import torch
from made import made
from PIL import Image

from diffdistill.diffusion import expand
from diffdistill.distill import SampleRandom, discriminator_loss, generator_loss
from diffdistill.errors import UserError
from diffdistill.methods import SwiftBrush, adversary
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings

EMOJI = Path(__file__).parents[2] / "assets" / "emoji"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adversarial")
    (folder / "prompts.txt").write_text("red apple, noto\nrocket, twemoji\n")
    tiny.save_tiny_pipeline(folder / "teacher")
    return folder


def build(folder: Path, monkeypatch, fake_score: str = "full", **more) -> SwiftBrush:
    """With random latents in the place of the emoji's own."""
    monkeypatch.setattr(adversary, "encoded", lambda latents, images: torch.randn(2, 4, 4, 4))
    return made(
        SwiftBrush, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"),
        fake__network=fake_score, fake__lora__rank=2, fake__lora__targets=("to_q", "conv1"),
        adversary__data__source=str(EMOJI), **more,
    )  # fmt: skip


@pytest.mark.parametrize("fake_score", ["lora", "full"])
def test_logits_alone_equal_those_of_the_whole_pass(folder: Path, monkeypatch, fake_score: str) -> None:
    fake = build(folder, monkeypatch, fake_score).networks["fake"]
    x, real, t, cond = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([5, 700]), torch.randn(2, 8, 16)
    value, of_x, of_real = fake(x, t, cond, real)
    torch.testing.assert_close(value, fake(x, t, cond))
    torch.testing.assert_close(of_x, fake.logits(x, t, cond))
    torch.testing.assert_close(of_real, fake.logits(real, t, cond))
    assert not fake.inner.mid_block._forward_hooks


def test_the_students_push_is_the_gradient_through_the_noised_sample(folder: Path, monkeypatch) -> None:
    method = build(folder, monkeypatch)
    random, cond = SampleRandom(0, range(2)), method.embedded([0, 1])
    x0 = torch.randn(2, 4, 4, 4)
    times, made = method.judge.times.first, x0.clone().requires_grad_()
    added, _ = method.judge.adversary.loss(made, cond, random, method.schedule, times, method.networks)
    (gradient,) = torch.autograd.grad(added, made)
    push = gradient * x0.numel() / method.judge.adversary.settings.weight
    t = method.schedule.timestep(random.uniform("critic_time"), *times)
    noise = random.normal("critic_noise", x0.shape[1:])

    def loss(x: torch.Tensor) -> torch.Tensor:
        x_t = method.schedule.add_noise(x, noise, t)
        return generator_loss(method.networks["fake"].logits(x_t, method.schedule.network_time(t), cond))

    with torch.no_grad():
        step = 1e-2 * push / push.norm()
        slope = (loss(x0 + step) - loss(x0 - step)) / 2
    torch.testing.assert_close(slope, (push * step).sum() / x0.numel(), rtol=2e-2, atol=1e-7)
    assert all(p.grad is None for p in method.networks["fake"].parameters())


@pytest.mark.parametrize("fake_score", ["lora", "full"])
def test_without_a_condition_samples_and_images_are_judged_under_the_empty_prompt(
    folder: Path, monkeypatch, fake_score: str
) -> None:
    method = build(folder, monkeypatch, fake_score, adversary__conditional=False)
    method.prepare(torch.device("cpu"))
    random, fake, term = SampleRandom(0, range(2)), method.networks["fake"], method.judge.adversary
    batch, cond, null = method.batch([0, 1], random), method.embedded([0, 1]), expand(method.judge.null, 2)
    x, t, noise = torch.randn(2, 4, 4, 4), torch.tensor([5, 700]), random.normal("real_noise/0", (4, 4, 4))
    seen = term.seen(batch, t, random, 0, method.schedule, method.networks)
    torch.testing.assert_close(seen(x, t, cond), fake(x, t, cond))  # the score itself keeps the prompts
    real = method.schedule.add_noise(batch["real"], noise, t)
    torch.testing.assert_close(seen.loss(), discriminator_loss(fake.logits(real, t, null), fake.logits(x, t, null)))

    def push(cond) -> torch.Tensor:
        x0 = x.clone().requires_grad_()
        loss, _ = term.loss(x0, cond, random, method.schedule, method.judge.times.first, method.networks)
        return torch.autograd.grad(loss, x0)[0]

    assert torch.equal(push(cond), push(cond.flip(0)))
    told = build(folder, monkeypatch, fake_score)
    told.prepare(torch.device("cpu"))
    term, method = told.judge.adversary, told
    assert not torch.equal(push(cond), push(cond.flip(0)))


@pytest.mark.parametrize("fake_score", ["lora", "full"])
def test_the_critic_learns_to_tell_real_from_generated(folder: Path, monkeypatch, fake_score: str, tmp_path) -> None:
    method = build(folder, monkeypatch, fake_score, adversary__critic_weight=1.0, optimizer__learning_rate=1e-9)
    method.judge.adversary.latents = torch.full((2, 4, 4, 4), 2.0)
    head = [p.detach().clone() for p in method.networks["fake"].head.parameters()]
    settings = TrainingSettings(320, batch_size=8, cpu=True, log_every=1, validate_every=0)
    Trainer(method, settings, tmp_path).fit()
    critic = [json.loads(line)["fake/critic"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    chance = 2 * math.log(2)  # its late times are nearly all noise, so it cannot come near 0
    assert abs(critic[0] - chance) < 0.2 and statistics.mean(critic[-20:]) < chance - 0.3
    assert any((p != before).any() for p, before in zip(method.networks["fake"].head.parameters(), head, strict=True))


def test_the_term_adds_nothing_at_weight_zero(folder: Path, monkeypatch) -> None:
    plain = made(
        SwiftBrush, teacher__source=str(folder / "teacher"), prompts=str(folder / "prompts.txt"), fake__network="full"
    )
    method = build(folder, monkeypatch, adversary__weight=0.0)
    losses = []
    for each in (plain, method):
        random = SampleRandom(0, range(2))
        loss, _ = each.phases(0)[0].loss(each.batch([0, 1], random), random, {})
        losses.append(loss)
    torch.testing.assert_close(*losses)


def test_images_without_captions_do_where_no_caption_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(numpy.full((8, 8, 3), 80 * i, numpy.uint8)).save(tmp_path / "photos" / f"{i}.png")
    data: dict[str, Any] = {
        "teacher__source": str(folder / "teacher"),
        "prompts": str(folder / "prompts.txt"),
        "fake__network": "full",
        "adversary__data__source": str(tmp_path / "photos"),
        "adversary__matched": False,
    }
    with pytest.raises(UserError, match="no captions.* or set adversary.conditional to false"):
        made(SwiftBrush, **data)
    method = made(SwiftBrush, **data, adversary__conditional=False)
    Trainer(method, TrainingSettings(4, batch_size=2, cpu=True, validate_every=0), tmp_path).fit()
    assert len(method.judge.adversary.latents) == 3
    with pytest.raises(UserError, match="the discriminator reads no caption"):
        made(SwiftBrush, **data, adversary__conditional=False, adversary__data__captions="captions.txt")


def test_what_it_cannot_use_is_refused(folder: Path, tmp_path: Path) -> None:
    teacher, prompts = str(folder / "teacher"), folder / "prompts.txt"
    with pytest.raises(UserError, match="sds has none"):
        made(
            SwiftBrush,
            teacher__source=teacher,
            prompts=str(prompts),
            adversary__data__source=str(EMOJI),
            residual="sds",
        )
    with pytest.raises(UserError, match="has no image of the prompt"):
        other = tmp_path / "prompts.txt"
        other.write_text("a unicorn on the moon\n")
        made(SwiftBrush, teacher__source=teacher, prompts=str(other), adversary__data__source=str(EMOJI))
    with pytest.raises(UserError, match="weight is -1.0; it must be a number from 0"):
        made(SwiftBrush, teacher__source=teacher, prompts=str(prompts), adversary__weight=-1.0)
