"""A Gaussian student distilled end to end: VSD finds the teacher's distribution, SDS only its mode."""

import pytest
import torch

from diffdistill.diffusion import FlowSchedule, Schedule, VPSchedule
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import SampleRandom, score_distillation_loss

VP = VPSchedule.from_config(
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
)
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
STD = torch.tensor([0.5, 1.5], dtype=torch.float64)


def distil(schedule: Schedule, residual: str, weight: str, steps: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Train x0 = m + s z; the fake score is the exact one of N(m, s^2), which a perfect fit would give."""
    teacher = GaussianTeacher(schedule, MEAN, STD, "v")
    m = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    s = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([m, s], lr=0.1, betas=(0.5, 0.9))
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        random = SampleRandom(0, range(64 * step, 64 * step + 64))
        x0 = m + s * random.normal("z", (2,), torch.float64)
        t = schedule.timestep(random.uniform("t"), 0.02, 0.98)
        fake = GaussianTeacher(schedule, m.detach(), s.detach(), "v")
        eps = random.normal("eps", (2,), torch.float64)
        loss, _ = score_distillation_loss(residual, weight, teacher, x0, t, eps, None, None, 1.0, fake=fake)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return m.detach(), s.detach().abs()


@pytest.mark.parametrize(("schedule", "weight"), [(VP, "sigma2"), (VP, "dmd"), (FlowSchedule(), "sigma2")])
def test_vsd_finds_mean_and_deviation(schedule: Schedule, weight: str) -> None:
    m, s = distil(schedule, "vsd", weight)
    torch.testing.assert_close(m, MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close(s, STD, rtol=0, atol=0.05)


def test_sds_finds_the_mode_and_collapses() -> None:
    m, s = distil(VP, "sds", "sigma2")
    torch.testing.assert_close(m, MEAN, rtol=0, atol=0.15)
    assert s.max().item() < 0.15
