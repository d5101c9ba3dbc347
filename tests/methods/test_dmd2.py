"""DMD2 on a tiny random pipeline: updates of a step, several steps, export."""

import json
import warnings
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from real_latents import give_latents
from torch import Tensor

from diffdistill.diffusion import Denoiser
from diffdistill.distill import SampleRandom
from diffdistill.distill.backward_simulation import few_step_sample
from diffdistill.errors import UserError
from diffdistill.methods import DMD2, Phase, SwiftBrush
from diffdistill.models.families.unet import UNetBackbone
from diffdistill.models.families.vp import few_step_scheduler
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def teacher(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dmd2")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher", request.param)
    return str(folder)


def build(folder: str, **more) -> DMD2:
    return made(DMD2, teacher__source=f"{folder}/teacher", prompts=f"{folder}/prompts.txt", **more)


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_is_pushed_before_the_fake_score_has_learnt(teacher: str, steps: int) -> None:
    method = build(teacher, steps=steps, guidance_scale=1.0)
    random = SampleRandom(0, range(4))
    _, logs = method.phases(0)[0].loss(method.batch([0, 1, 0, 1], random), random, {})
    assert logs["grad_rms"].item() < 1e-4  # of a residual that rounding alone makes, over a mean error


def test_in_one_step_it_is_swiftbrush_with_other_numbers(teacher: str) -> None:
    """Which two implementations of one gradient agree, and so do their fake scores' losses."""
    options = {
        "weight": "dmd",
        "guidance_scale": 3.0,
        "fake__weight": "eps",
        "fake__drop_text": 0.0,
        "fake__updates": 2,
    }
    one = build(teacher, **options)
    other = made(
        SwiftBrush,
        teacher__source=f"{teacher}/teacher",
        prompts=f"{teacher}/prompts.txt",
        fake__network="full",
        fake__guidance_scale=1.0,
        **options,
    )
    random = SampleRandom(0, range(4))
    for a, b in zip(one.phases(0), other.phases(0), strict=True):
        losses = [phase.loss(m.batch([0, 1, 0, 1], random), random, {})[0] for m, phase in ((one, a), (other, b))]
        assert losses[0].item() == losses[1].item() > 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_fake_score_really_is_updated_so_often_and_the_log_says_so(
    teacher: str, tmp_path: Path, accumulation: int
) -> None:
    method = build(teacher, fake__updates=5, fake__warmup=1)
    settings = TrainingSettings(12, 4, accumulation, cpu=True, log_every=1)
    trainer = Trainer(method, settings, tmp_path)
    counts = dict.fromkeys(trainer.state.optimizers, 0)
    for name, optimizer in trainer.state.optimizers.items():

        def count(*_: object, name=name) -> None:
            counts[name] += 1

        optimizer.register_step_post_hook(count)
    trainer.fit()
    assert counts == {"student": 2, "fake": 15}
    lines = log_of(tmp_path)
    assert [line["fake/updates"] for line in lines] == [5.0] * 3
    assert ["student/loss" in line for line in lines] == [False, True, True]


def test_each_update_of_the_fake_score_but_the_first_sees_samples_of_its_own(teacher: str) -> None:
    method = build(teacher, fake__updates=3, steps=2)
    random, seen = SampleRandom(0, range(4)), []
    batch, carry = method.batch([0, 1, 0, 1], random), {}

    def denoising(denoiser: object, x0: Tensor, *more: object) -> Tensor:
        seen.append(x0)
        return x0.sum()

    with patch("diffdistill.methods.judge.denoising_loss", side_effect=denoising):
        for phase in method.phases(0):
            phase.loss(batch, random, carry)
    assert torch.equal(seen[0], carry["x0"]) and not any(x0.requires_grad for x0 in seen)
    assert all((a - b).abs().max() > 1e-3 for a, b in ((seen[0], seen[1]), (seen[1], seen[2])))


def test_several_steps_are_all_trained_and_only_the_last_has_a_graph(teacher: str) -> None:
    method = build(teacher, steps=4)
    assert method.student.times.tolist() == [999, 749, 499, 249]
    random = SampleRandom(0, range(64))
    cond = method.batch([0, 1] * 32, random)["cond"]
    calls: list[tuple[bool, int, set]] = []
    student = method.networks["student"]
    student.register_forward_pre_hook(
        lambda module, args: calls.append((torch.is_grad_enabled(), len(args[0]), set(args[1].tolist())))
    )
    x0 = method.student.train_sample(student, random, cond)
    assert x0.shape == (64, 4, 4, 4) and x0.requires_grad
    *rollout, last = calls
    assert last == (True, 64, {999, 749, 499, 249})
    assert [times for _, _, times in rollout] == [{999}, {749}, {499}] and not any(grad for grad, _, _ in rollout)
    sizes = [size for _, size, _ in rollout]
    assert 64 > sizes[0] > sizes[1] > sizes[2] > 0


@pytest.mark.parametrize("noise_ratio", [None, 2.5])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exported_pipeline_samples_as_the_student_does(
    teacher: str, tmp_path: Path, noise_ratio: float | None, steps: int
) -> None:
    from diffusers import DiffusionPipeline

    method = build(teacher, steps=steps, noise_ratio=noise_ratio, optimizer__learning_rate=1e-3, fake__updates=1)
    Trainer(method, TrainingSettings(16, batch_size=4, cpu=True), tmp_path).fit()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "export")
    assert not [w for w in said if "scheduler" in str(w.message)]  # of a setting it thinks outdated
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler).__name__ == ("DDIMScheduler" if steps == 1 else "LCMScheduler")

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    stock = pipeline(
        ["red apple", "blue car"], num_inference_steps=steps, guidance_scale=1, generator=generators(),
        output_type="latent",
    ).images  # fmt: skip
    drawn = generators()
    z, *noises = [torch.cat([torch.randn(1, 4, 4, 4, generator=g) for g in drawn]) for _ in range(steps)]
    denoiser = Denoiser(UNetBackbone(pipeline.unet), method.schedule, method.teacher.prediction_type)
    times = method.student.time[None] if steps == 1 else method.student.times
    ours = few_step_sample(denoiser, z, times, noises, method.embedded([0, 1]))
    # the stock scheduler's table of alphas is float32; where noise is predicted, 1 / alpha = 15 magnifies that
    torch.testing.assert_close(stock, ours, rtol=1e-3, atol=1e-4 * ours.abs().max().item())


def test_the_stock_schedulers_boundary_coefficients_are_zero_and_one(teacher: str) -> None:
    scheduler = few_step_scheduler(build(teacher).teacher, 755)
    for t in (1, 188, 755):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        assert float(skip) < 1e-18 and float(out) == 1.0


def test_our_own_command_samples_the_export_too(teacher: str, tmp_path: Path) -> None:
    from diffdistill.models.generate import generate

    method = build(teacher, steps=2, noise_ratio=2.5)
    method.export(tmp_path / "model")
    pictures = torch.cat(list(generate(str(tmp_path / "model"), ["red apple", "blue car"], 2, 1.0)))
    drawn = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    z, noise = (torch.cat([torch.randn(1, 4, 4, 4, generator=g) for g in drawn]) for _ in range(2))
    student = method.teacher.denoiser(method.networks["student"])
    ours = method.teacher.latents.images(
        few_step_sample(student, z, method.student.times, [noise], method.embedded([0, 1]))
    )
    assert (pictures - ours).abs().max() < 2 / 255


@pytest.mark.parametrize("steps", [1, 2])
def test_with_pictures_the_head_on_the_fake_score_learns_and_pushes(teacher: str, monkeypatch, steps: int) -> None:
    give_latents(monkeypatch, ["red apple", "blue car"], lambda: torch.full((2, 4, 4, 4), 2.0))
    method = build(teacher, steps=steps, adversary__data__source="somewhere", fake__updates=2)
    random, carry = SampleRandom(0, range(4)), {}
    batch = method.batch([0, 1, 0, 1], random)
    student, *fakes = method.phases(0)
    loss, logs = student.loss(batch, random, carry)
    loss.backward()
    assert logs["adversarial_rms"] > 0 and all(p.grad is None for p in method.networks["fake"].parameters())
    for phase in fakes:
        loss, logs = phase.loss(batch, random, carry)
        loss.backward()
        assert logs["critic"].item() == pytest.approx(1.386, abs=0.3)
    assert all(p.grad is not None for p in method.networks["fake"].head.parameters())


@pytest.mark.parametrize("bad", [{"steps": 0}, {"weight": "dmd2"}, {"fake__updates": 0}, {"fake__weight": "w"}])
def test_what_cannot_be_is_refused_at_once(teacher: str, bad: dict) -> None:
    with pytest.raises((UserError, ValueError), match=str(next(iter(bad.values())))):
        build(teacher, **bad)


def test_more_steps_than_the_schedule_has_times_are_refused(teacher: str) -> None:
    with pytest.raises((UserError, ValueError), match="5000 steps"):
        build(teacher, steps=5000)


def test_a_step_at_time_0_which_the_stock_sampler_would_skip_is_refused(teacher: str) -> None:
    for t_star, steps in ((3, 2), (3, 4)):
        method = build(teacher)
        ratio = float(method.schedule.sigma(torch.tensor(t_star)) / method.schedule.alpha(torch.tensor(t_star)))
        skip, _ = few_step_scheduler(method.teacher, t_star).get_scalings_for_boundary_condition_discrete(0)
        assert float(skip) == 1.0  # the sample itself, not the prediction
        if steps < t_star + 1:
            assert build(teacher, steps=steps, noise_ratio=ratio).student.times.tolist() == [3, 1]
        else:
            with pytest.raises(UserError, match="steps is 4, the number of all times"):
                build(teacher, steps=steps, noise_ratio=ratio)


def test_its_phases_are_one_of_the_student_and_n_of_the_fake_score(teacher: str) -> None:
    phases: list[Phase] = build(teacher, fake__updates=10).phases(0)
    assert [phase.trains for phase in phases] == ["student"] + ["fake"] * 10
