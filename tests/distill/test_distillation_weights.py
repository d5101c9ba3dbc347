"""Relations between the weights, and their behaviour at the ends of a schedule."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import FlowSchedule, PredictionType, VPSchedule
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import RESIDUALS, WEIGHTS, Judgement, JudgingOptions, judge, score_distillation_loss
from diffdistill.distill.weights import DMD_FLOOR, PRD_DELTA, teacher_error

SCHEDULES = [
    VPSchedule.from_config(
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
    ),
    FlowSchedule(),
]


def judged(
    schedule: Any, kind: PredictionType, residual: str = "vsd", u: Tensor | None = None, std: float = 0.4
) -> Judgement:
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(4, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    u = torch.linspace(0.1, 0.9, 4, dtype=torch.float64) if u is None else u
    t = schedule.timestep(u, 0.0, 1.0)
    teacher = GaussianTeacher(schedule, 1.0, std, kind)
    fake = GaussianTeacher(schedule, -1.0, 0.7, kind)
    return judge(residual, teacher, x0, t, eps, None, None, 1.0, fake=fake, options=JudgingOptions(later_t=t))


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
@pytest.mark.parametrize("residual", ["sds", "vsd"])
def test_weights_are_factors_on_one_residual(schedule: Any, kind: PredictionType, residual: str) -> None:
    judgement = judged(schedule, kind, residual)
    row = RESIDUALS[residual]
    noise, clean = row.assemble(judgement), row.assemble_x0(judgement)
    alpha, sigma = judgement.alpha, judgement.sigma
    grad = {name: weight.gradient(row, judgement) for name, weight in WEIGHTS.items()}
    error = (judgement.x0 - judgement.read("guided").x0).abs().mean(dim=(1, 2), keepdim=True)

    for name, expected in {
        "uniform": alpha / sigma * clean,
        "sigma2": alpha * sigma * clean,  # SwiftBrush: sigma^2 (eps_T - eps_L) = alpha sigma (x0_L - x0_T)
        "alpha_sigma": alpha**2 * clean,
        "alpha_sigma2": alpha**2 * sigma * clean,
        "x0": sigma / alpha * noise,
        "dmd": grad["alpha_sigma"] / (alpha**2 * error),
        "prd": grad["dmd"] * error / (error + PRD_DELTA),
    }.items():
        torch.testing.assert_close(grad[name], expected, rtol=1e-8, atol=1e-9, msg=name)


def test_sds_normalised_as_in_dmd_has_a_mean_of_one() -> None:
    judgement = judged(SCHEDULES[0], "v", "sds")
    grad = WEIGHTS["dmd"].gradient(RESIDUALS["sds"], judgement)
    torch.testing.assert_close(grad.abs().mean(dim=(1, 2)), torch.ones(4, dtype=torch.float64))


def test_normalising_is_a_sample_s_own() -> None:
    judgement = judged(SCHEDULES[1], "flow")
    error = teacher_error(judgement)
    assert error.shape == (4, 1, 1) and len(error.unique()) == 4


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("kind", ["v", "flow", "x0"])
def test_gradients_are_finite_at_pure_noise(weight: str, kind: PredictionType) -> None:
    """The flow schedule ends at alpha = 0 exactly, where alpha divides nothing that a weight needs."""
    judgement = judged(FlowSchedule(), kind, u=torch.ones(4, dtype=torch.float64))
    assert bool((judgement.alpha == 0).all())
    grad = WEIGHTS[weight].gradient(RESIDUALS["vsd"], judgement)
    assert bool(grad.isfinite().all())
    if weight in ("x0", "dmd", "prd"):
        assert bool((grad != 0).all())


def test_dmd_has_a_floor() -> None:
    schedule = FlowSchedule()
    x0 = torch.ones(2, 3, dtype=torch.float64)
    exact = GaussianTeacher(schedule, 1.0, 0.0, "flow")
    fake = GaussianTeacher(schedule, 1.0 - 1e-9, 0.0, "flow")
    t = schedule.timestep(torch.tensor([0.3, 0.6], dtype=torch.float64), 0.0, 1.0)
    judgement = judge("vsd", exact, x0, t, torch.ones_like(x0), None, None, 1.0, fake=fake)
    grad = WEIGHTS["dmd"].gradient(RESIDUALS["vsd"], judgement)
    torch.testing.assert_close(grad, torch.full_like(grad, -1e-9 / DMD_FLOOR), rtol=1e-4, atol=1e-12)


def test_what_is_not_finite_is_not_hidden() -> None:
    schedule = SCHEDULES[0]
    x0 = torch.zeros(2, 3)
    broken = GaussianTeacher(schedule, float("nan"), 1.0, "eps")
    args = (x0, schedule.timestep(torch.full((2,), 0.5, dtype=torch.float64), 0.0, 1.0), torch.ones(2, 3))
    loss, logs = score_distillation_loss("sds", "sigma2", broken, *args, None, None, 1.0)
    assert bool(loss.isnan()) and bool(logs["grad_rms"].isnan())


def test_logs() -> None:
    schedule = SCHEDULES[0]
    x0 = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    t = schedule.timestep(torch.full((4,), 0.5, dtype=torch.float64), 0.0, 1.0)
    teacher = GaussianTeacher(schedule, 0.0, 0.5, "eps")
    loss, logs = score_distillation_loss("sds", "sigma2", teacher, x0, t, torch.ones(4, 3), None, None, 1.0)
    x = x0[:1]  # of one sample, the loss is half the square of what is logged
    one, log = score_distillation_loss("sds", "sigma2", teacher, x, t[:1], torch.ones(1, 3), None, None, 1.0)
    assert log["grad_rms"].item() == pytest.approx((2 * one.item()) ** 0.5, rel=1e-5)
    sigma2 = schedule.sigma(t)[0].item() ** 2
    assert logs["grad_rms"].item() == pytest.approx(sigma2 * logs["residual_rms"].item(), rel=1e-5)
    assert loss.dtype == torch.float32


def test_unknown_weight_names_the_nearest() -> None:
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="Did you mean 'sigma2'"):
        score_distillation_loss("sds", "sigma", None, zero, zero, zero, None, None, 1.0)
