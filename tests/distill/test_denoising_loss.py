"""The weights of denoising score matching against their definitions on the error of x0."""

from typing import Any

import pytest
import torch

from diffdistill.diffusion import FlowSchedule, PredictionType, VPSchedule
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import DENOISING_WEIGHTS, denoising_loss

SCHEDULES = [
    VPSchedule.from_config(
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
    ),
    FlowSchedule(),
]


def batch(schedule: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x0, eps = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, schedule.timestep(torch.linspace(0.1, 0.9, 6, dtype=torch.float64), 0.0, 1.0), eps


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
def test_every_weight_is_a_weight_on_the_error_of_x0(schedule: Any, kind: PredictionType) -> None:
    x0, t, eps = batch(schedule)
    model = GaussianTeacher(schedule, 0.3, 0.6, kind)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    error = (model(alpha * x0 + sigma * eps, t, None).x0 - x0).square()
    snr = alpha**2 / sigma**2
    expected = {
        "eps": snr,
        "alpha2_eps": alpha**2 * snr,
        "x0": torch.ones_like(snr),
        "v": (alpha**2 + sigma**2) ** 2 / sigma**2,
        "flow": (alpha + sigma) ** 2 / sigma**2,
        "snr_plus_one": snr + 1,
    }
    assert expected.keys() == DENOISING_WEIGHTS.keys()
    for name, weight in expected.items():
        loss = denoising_loss(model, x0, t, eps, None, name)
        torch.testing.assert_close(loss, (weight * error).mean(), rtol=1e-8, atol=1e-10, msg=name)


def test_snr_plus_one_is_the_v_loss_where_variance_is_preserved() -> None:
    vp, flow = SCHEDULES
    for schedule, equal in ((vp, True), (flow, False)):
        x0, t, eps = batch(schedule)
        model = GaussianTeacher(schedule, 0.3, 0.6, "v")
        snr, v = (denoising_loss(model, x0, t, eps, None, name) for name in ("snr_plus_one", "v"))
        assert torch.isclose(snr, v, rtol=1e-9).item() is equal


def test_snr_plus_one_is_finite_without_noise() -> None:
    """At sigma = 0 its definition is 0 / 0."""
    schedule = SCHEDULES[1]
    x0, _, eps = batch(schedule)
    t = torch.zeros(6, dtype=torch.float64)
    model = GaussianTeacher(schedule, 0.3, 0.6, "flow")
    assert bool(denoising_loss(model, x0, t, eps, None, "snr_plus_one").isfinite())


def test_the_score_of_the_samples_minimises_it() -> None:
    """At the exact mean and deviation of the samples the gradient of the expected loss is zero."""
    schedule = SCHEDULES[0]
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    std = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    # four points with the moments of (x0, eps) stand for the expectation: the loss is quadratic in both
    signs = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0])).double()
    x0, eps = 0.3 + 0.6 * signs[:, :1], signs[:, 1:]
    t = schedule.timestep(torch.full((4,), 0.4, dtype=torch.float64), 0.0, 1.0)
    model = GaussianTeacher(schedule, mean, std, "eps")
    for name in DENOISING_WEIGHTS:
        loss = denoising_loss(model, x0, t, eps, None, name)
        for grad in torch.autograd.grad(loss, (mean, std)):
            assert abs(grad.item()) < 1e-9, name


def test_a_generator_s_graph_is_cut() -> None:
    schedule = SCHEDULES[0]
    x0, t, eps = batch(schedule)
    mean = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    x0.requires_grad_()
    denoising_loss(GaussianTeacher(schedule, mean, 0.6, "eps"), x0, t, eps, None).backward()
    assert x0.grad is None and mean.grad is not None


def test_errors() -> None:
    schedule = SCHEDULES[0]
    x0, t, eps = batch(schedule)
    model = GaussianTeacher(schedule, 0.0, 1.0, "eps")
    with pytest.raises(ValueError, match="Did you mean 'alpha2_eps'"):
        denoising_loss(model, x0, t, eps, None, "alpha_eps")
    with pytest.raises(ValueError, match="must be equal"):
        denoising_loss(model, x0, t, eps[:, :2], None)
    for wrong in (t[:1], t[0], t[:2]):
        with pytest.raises(ValueError, match=r"t has shape .*; one time per sample is \(6,\)"):
            denoising_loss(model, x0, wrong, eps, None)


def test_a_time_per_token() -> None:
    schedule = SCHEDULES[0]
    x0, t, eps = batch(schedule)
    model = GaussianTeacher(schedule, 0.3, 0.6, "eps")
    tokens = t[:, None].expand(6, 4)
    assert torch.equal(denoising_loss(model, x0, tokens, eps, None), denoising_loss(model, x0, t, eps, None))
