"""SiD on a tiny random pipeline: where its gradient goes, its guidance, and what it leaves alone."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from real_latents import give_latents

from diffdistill.diffusion import guided
from diffdistill.distill import SampleRandom, discriminator_loss
from diffdistill.distill.score_identity import score_identity_loss
from diffdistill.methods import SiD
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def teacher(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sid")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher", request.param)
    return str(folder)


def build(folder: str, **more) -> SiD:
    return made(SiD, teacher__source=f"{folder}/teacher", prompts=f"{folder}/prompts.txt", **more)


def test_loss_and_gradient_are_zero_before_the_fake_score_has_learnt(teacher: str) -> None:
    method = build(teacher)
    random = SampleRandom(0, range(4))
    loss, logs = method.phases(0)[0].loss(method.batch([0, 1, 0, 1], random), random, {})
    assert abs(loss.item()) < 1e-6 and logs["gap_rms"].item() < 1e-5 and logs["grad_rms"].item() < 1e-3


def test_the_students_gradient_is_that_of_the_loss_through_both_scores(teacher: str) -> None:
    method = build(teacher, guidance_scale=1.5, alpha=1.2)
    with torch.no_grad():
        for p in method.networks["fake"].parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    random = SampleRandom(0, range(4))
    batch = method.batch([0, 1, 0, 1], random)
    loss, _ = method.phases(0)[0].loss(batch, random, {})
    loss.backward()
    student, fake = method.networks["student"], method.networks["fake"]
    cut = {name: p.grad.clone() for name, p in student.named_parameters()}
    assert all(p.grad is None for net in (fake, method.teacher.backbone) for p in net.parameters())
    student.zero_grad()
    x0 = method.student.train_sample(student, random, batch["cond"])
    t = method.schedule.timestep(random.uniform("time"), 0.02, 0.98)
    teacher_score, fake_score = method.teacher.denoiser(method.teacher.backbone), method.teacher.denoiser(fake)
    whole, _ = score_identity_loss(
        teacher_score, fake_score, x0, t, random.normal("noise", (4, 4, 4)), batch["cond"], method.null, 1.5,
        fake_guidance_scale=1.5, alpha=1.2,
    )  # fmt: skip
    assert whole.item() == loss.item() != 0
    whole.backward()
    for name, p in student.named_parameters():
        torch.testing.assert_close(p.grad, cut[name], rtol=1e-4, atol=1e-6 * p.grad.abs().max().item() + 1e-9)


def scales(method: SiD) -> tuple[float, float, float]:
    """Guidance of the teacher and of the fake score where they judge, and of the fake score where it is trained."""
    judge = method.judge
    return judge.guidance_scale, method.fake_guidance_scale, judge.fake.training_scale(judge.guidance_scale)


@pytest.mark.parametrize("real", [False, True])
def test_the_fake_scores_guided_prediction_is_what_learns(teacher: str, monkeypatch, real: bool) -> None:
    give_latents(monkeypatch, ["red apple", "blue car"], lambda: torch.randn(2, 4, 4, 4))
    method = build(
        teacher,
        guidance_scale=3.0,
        fake__weight="v",
        adversary__data__source="x" if real else None,
        **({"adversary__critic_weight": 0.0} if real else {}),
    )
    assert scales(method) == (3.0, 3.0, 3.0)
    random, carry = SampleRandom(0, range(4)), {}
    batch = method.batch([0, 1, 0, 1], random)
    student, fake = method.phases(0)
    student.loss(batch, random, carry)
    loss, logs = fake.loss(batch, random, carry)
    t = method.schedule.timestep(random.uniform("fake_time/0"), 0.02, 0.98)
    eps = random.normal("fake_noise/0", (4, 4, 4))
    x_t = method.schedule.add_noise(carry["x0"], eps, t)
    score = method.teacher.denoiser(method.networks["fake"])
    prediction = guided(score, x_t, t, batch["cond"], method.null, 3.0, batched=False)
    alpha, sigma = (level(t).view(4, 1, 1, 1).float() for level in (method.schedule.alpha, method.schedule.sigma))
    expected = (prediction.v - (alpha * eps - sigma * carry["x0"])).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert ("critic" in logs) == real
    if real:  # told apart with the prompt, whatever guidance runs beside it
        real_t = method.schedule.add_noise(batch["real"], random.normal("real_noise/0", (4, 4, 4)), t)
        logits = [method.networks["fake"].logits(x, t, batch["cond"]) for x in (real_t, x_t)]
        assert logs["critic"].item() == pytest.approx(discriminator_loss(*logits).item(), rel=1e-5)


def test_guidance_scales_follow_the_teachers_unless_said_otherwise(teacher: str) -> None:
    method = build(teacher, guidance_scale=4.5, fake__train_guidance_scale=1.0)
    assert scales(method) == (4.5, 4.5, 1.0)
    long = build(teacher, guidance_scale=4.5, fake__guidance_scale=1.5)
    assert scales(long) == (4.5, 1.5, 1.5)


def test_gradient_checkpointing_runs_the_judges_again_and_changes_nothing(teacher: str, tmp_path: Path) -> None:
    logs, calls = [], []
    for checkpointing in (False, True):
        run = tmp_path / str(checkpointing)
        run.mkdir()
        method = build(teacher, optimizer__learning_rate=1e-4, fake__optimizer__learning_rate=1e-3, fake__warmup=1)
        settings = TrainingSettings(16, 4, cpu=True, log_every=1, gradient_checkpointing=checkpointing)
        trainer = Trainer(method, settings, run)
        count = {"teacher": 0}

        def counted(*_: object, count=count) -> None:
            count["teacher"] += 1

        method.teacher.backbone.inner.up_blocks[-1].resnets[-1].register_forward_pre_hook(counted)
        trainer.fit()
        logs.append([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()])
        calls.append(count["teacher"])
    assert calls[1] == 2 * calls[0] == 6  # three steps after the warm-up
    for plain, again in zip(*logs, strict=True):
        for key in (k for k in plain if k.startswith(("student/", "fake/"))):
            assert plain[key] == pytest.approx(again[key], rel=1e-4, abs=1e-7), key


def test_the_exported_pipeline_makes_the_students_picture(teacher: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    method = build(teacher, optimizer__learning_rate=1e-3, fake__optimizer__learning_rate=1e-3)
    Trainer(method, TrainingSettings(16, batch_size=4, cpu=True), tmp_path).fit()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "export")
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    stock = pipeline(
        ["red apple", "blue car"], num_inference_steps=1, guidance_scale=1, latents=z, output_type="pt"
    ).images  # fmt: skip
    method.networks["student"].inner.load_state_dict(pipeline.unet.state_dict())  # the average was exported
    with torch.no_grad():
        ours = method.teacher.latents.images(method.student.x0(method.networks["student"], z, method.embedded([0, 1])))
    assert (stock - ours).abs().max() < 2 / 255


def test_the_default_noise_is_fed_at_the_papers_time(tmp_path: Path) -> None:
    """sigma/alpha = 2.5 is t = 625 of Stable Diffusion's schedule."""
    (tmp_path / "prompts.txt").write_text("red apple\n")
    folder = tiny.save_tiny_pipeline(tmp_path / "teacher", "epsilon")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_start": 0.00085, "beta_end": 0.012}))
    assert build(str(tmp_path)).student.time == 625


def test_times_of_both_losses_are_the_ones_judged(teacher: str) -> None:
    method = build(teacher, times__t_min=0.3, times__t_max=0.6)
    random, carry = SampleRandom(0, range(64)), {}
    batch = method.batch([0, 1] * 32, random)
    for phase in method.phases(0):
        with patch.object(method.schedule, "add_noise", wraps=method.schedule.add_noise) as noised:
            phase.loss(batch, random, carry)
        times = noised.call_args.args[2]
        assert times.min() >= 300 and times.max() < 600
