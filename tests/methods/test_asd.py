"""ASD on a tiny random pipeline, and on Gaussians, where what it comes to is known in closed form."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_pipeline as tiny
import torch
from made import made
from torch import Tensor

from diffdistill.diffusion import Prediction, VPSchedule
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import JudgingOptions, SampleRandom, score_distillation_loss
from diffdistill.errors import UserError
from diffdistill.methods import ASD, SwiftBrush
from diffdistill.training.loop import Trainer
from diffdistill.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("asd")
    (folder / "prompts.txt").write_text("red apple\nblue car\n")
    tiny.save_tiny_pipeline(folder / "teacher")
    return str(folder)


def build(folder: str, **more) -> ASD:
    return made(ASD, teacher__source=f"{folder}/teacher", prompts=f"{folder}/prompts.txt", **more)


def loss_of(method: Any, n: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    random = SampleRandom(0, range(n))
    return method.phases(0)[0].loss(method.batch([i % 2 for i in range(n)], random), random, {})


def test_the_student_is_all_that_is_trained(teacher: str, tmp_path: Path) -> None:
    method = build(teacher, optimizer__learning_rate=1e-3)
    assert set(method.networks) == set(method.optimizers) == {"student"}
    assert [phase.trains for phase in method.phases(0)] == ["student"]
    before = {name: p.clone() for name, p in method.teacher.backbone.named_parameters()}
    Trainer(method, TrainingSettings(8, batch_size=4, cpu=True), tmp_path).fit()
    assert all(torch.equal(p, before[name]) for name, p in method.teacher.backbone.named_parameters())
    student = dict(method.networks["student"].named_parameters())
    assert any(not torch.equal(student[name], p) for name, p in before.items())


def test_it_is_swiftbrush_with_that_row_of_the_family(teacher: str) -> None:
    one = build(teacher, times__t_min=0.02, times__t_max_final=None, guidance_scale=4.5)
    other = made(SwiftBrush, teacher__source=f"{teacher}/teacher", prompts=f"{teacher}/prompts.txt", residual="asd")
    assert loss_of(one)[0].item() == loss_of(other)[0].item() > 0


@pytest.mark.parametrize(("residual", "lacks"), [("nfsd", "negative"), ("ism", "earlier")])
def test_rows_that_ask_for_more_than_swiftbrush_has_are_refused(teacher: str, residual: str, lacks: str) -> None:
    with pytest.raises(UserError, match=f"has no {lacks}"):
        made(SwiftBrush, teacher__source=f"{teacher}/teacher", prompts=f"{teacher}/prompts.txt", residual=residual)


def test_without_a_shift_and_without_guidance_it_is_zero(teacher: str) -> None:
    assert loss_of(build(teacher, eta=0.0, guidance_scale=1.0))[0].item() == 0


def test_both_ends_of_the_times_come_down_and_the_shift_keeps_to_them(teacher: str) -> None:
    method, seen = build(teacher), {}
    for progress in (0.0, 0.5, 1.0):
        method.progress = progress
        method.begin_step(0)
        with patch.object(method.schedule, "later", wraps=method.schedule.later) as later:
            loss_of(method, 64)
        t, _, eta, low = later.call_args.args
        seen[progress] = (t.min().item(), t.max().item(), low)
        assert eta == 0.1
    for progress, (low, high) in {0.0: (500, 981), 0.5: (260, 740), 1.0: (20, 500)}.items():
        first, last, start = seen[progress]
        assert low <= first < low + 50 and high - 50 < last < high and start == pytest.approx(low / 1000)


@pytest.mark.parametrize(
    "bad", [{"eta": -0.1}, {"times__t_min_final": 0.6}, {"times__t_max_final": 0.01}, {"weight": "w"}]
)
def test_what_cannot_be_is_refused_at_once(teacher: str, bad: dict) -> None:
    with pytest.raises((UserError, ValueError), match=str(next(iter(bad.values())))):
        build(teacher, **bad)


def test_the_exported_pipeline_is_a_stock_one(teacher: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    method = build(teacher, noise_ratio=2.5)
    method.export(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    stock = pipeline(
        ["red apple", "blue car"], num_inference_steps=1, guidance_scale=1, latents=z, output_type="pt"
    ).images  # fmt: skip
    with torch.no_grad():
        ours = method.teacher.latents.images(method.student.x0(method.networks["student"], z, method.embedded([0, 1])))
    assert (stock - ours).abs().max() < 2 / 255


# ---- on Gaussians ---------------------------------------------------------------------------------------------

VP = VPSchedule.from_config(
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
)
SCALE, ETA = 7.5, 0.1


class Conditional:
    """N(1.5, .3^2) with the prompt, N(-.5, 1) without."""

    schedule = VP
    parts = {1: GaussianTeacher(VP, 1.5, 0.3, "eps"), 0: GaussianTeacher(VP, -0.5, 1.0, "eps")}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Prediction:
        prompt, empty = (self.parts[k](x_t, t, None) for k in (1, 0))
        value = torch.where(cond.bool(), prompt.value, empty.value)
        return Prediction(x_t, value, "eps", prompt.alpha, prompt.sigma)


def test_a_student_comes_to_the_fixed_point_and_all_samples_to_one() -> None:
    """E[residual] is A x - b, whose root lies past the prompt's mean where guidance is strong; all z end there."""
    m, s = (torch.full((1,), v, dtype=torch.float64, requires_grad=True) for v in (0.0, 1.0))
    optimiser = torch.optim.Adam([m, s], 0.05, (0.5, 0.9))
    cond, null = torch.ones(64, 1), torch.zeros(1, 1)
    steps = 250
    for step in range(steps):
        random = SampleRandom(0, range(64 * step, 64 * step + 64))
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        x0 = m + s * random.normal("z", (1,), torch.float64)
        t = VP.timestep(random.uniform("t"), 0.02, 0.5)
        later = VP.later(t, random.uniform("later"), ETA, 0.02)
        eps = random.normal("eps", (1,), torch.float64)
        args = (x0, t, eps, cond, null, SCALE)
        loss, _ = score_distillation_loss("asd", "sigma2", Conditional(), *args, options=JudgingOptions(later_t=later))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    t, u = torch.arange(20, 500), torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    t, u = t.repeat_interleave(100), u.repeat(480)
    later = VP.later(t, u, ETA, 0.02)

    def restoring(at: Tensor, std: float) -> Tensor:
        alpha, sigma = VP.alpha(at), VP.sigma(at)
        return VP.sigma(t) ** 2 * alpha * sigma / (alpha**2 * std**2 + sigma**2)

    null_part, cond_part = (1 - SCALE) * restoring(t, 1.0), SCALE * restoring(t, 0.3) - restoring(later, 0.3)
    root = (null_part * -0.5 + cond_part * 1.5).sum() / (null_part + cond_part).sum()
    assert root.item() > 1.5
    assert m.item() == pytest.approx(root.item(), abs=0.05) and abs(s.item()) < 0.1
