"""Schedules against diffusers' tables, and the bounds of every time they hand out."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from diffdistill.diffusion import FlowSchedule, VPSchedule, broadcast

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
VP = VPSchedule.from_config(STABLE_DIFFUSION)
U = torch.cat([torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1], torch.tensor([1 - 2**-53]).double()])


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.01, 0.02, 0.05, 0.1], "num_train_timesteps": 4},
    ],
)
def test_tables_equal_those_of_diffusers(config: dict[str, Any], rescale: bool) -> None:
    reference: Any = DDPMScheduler(**config, rescale_betas_zero_snr=rescale)
    schedule = VPSchedule.from_config(reference.config)
    assert schedule.alphas_cumprod.dtype == torch.float64
    # the reference is a product of up to 1000 float32 numbers
    torch.testing.assert_close(schedule.alphas_cumprod, reference.alphas_cumprod.double(), rtol=3e-5, atol=1e-7)
    torch.testing.assert_close(schedule.betas, reference.betas.double(), rtol=1e-3, atol=1e-6)
    assert (schedule.alphas_cumprod[-1] == 0) == rescale


def test_betas_round_trip_and_defaults() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(VPSchedule.from_betas(betas).betas, betas, rtol=0, atol=1e-14)
    assert torch.equal(VPSchedule.from_config({}).alphas_cumprod, VPSchedule.from_betas(betas).alphas_cumprod)


def test_levels_and_their_ratio() -> None:
    t = torch.tensor([[0, 500, 999]])
    for schedule, at in ((VP, t), (FlowSchedule(), t / 1000 + 1e-4)):
        alpha, sigma = schedule.alpha(at), schedule.sigma(at)
        assert alpha.shape == sigma.shape == at.shape and alpha.dtype == sigma.dtype == torch.float64
        torch.testing.assert_close(schedule.half_log_snr(at), (alpha / sigma).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(VP.alpha(t) ** 2 + VP.sigma(t) ** 2, torch.ones(1, 3).double())
    zero_snr = VPSchedule.from_config({**STABLE_DIFFUSION, "rescale_betas_zero_snr": True})
    assert zero_snr.half_log_snr(torch.tensor(999)).item() == -math.inf
    assert FlowSchedule().half_log_snr(torch.tensor(1.0)).item() == -math.inf
    assert FlowSchedule().half_log_snr(torch.tensor(0.0)).item() == math.inf


def test_truncated_keeps_the_process_up_to_a_time() -> None:
    short = VP.truncated(579)
    assert short.last == 579 and short.num_train_timesteps == 580
    t = torch.arange(580)
    assert torch.equal(short.alpha(t), VP.alpha(t)) and torch.equal(short.betas, VP.betas[:580])
    with pytest.raises(ValueError, match="outside 0 ... 579"):
        short.alpha(torch.tensor([580]))
    with pytest.raises(ValueError, match="t_star = 1000"):
        VP.truncated(1000)


def test_the_time_at_a_noise_to_signal_ratio() -> None:
    for index in (0, 1, 400, 998, 999):
        t = torch.tensor(index)
        found = VP.time_at((VP.sigma(t) / VP.alpha(t)).item() * 1.0001)
        assert found.item() == index and found.dtype == torch.int64 and found.shape == ()
    assert VP.time_at(1e-9).item() == 0 and VP.time_at(1e9).item() == 999
    flow = FlowSchedule(shift=3.0)  # a shift moves times that are drawn, not alpha(t)
    for ratio in (1e-3, 1.0, 2.5, 1e6):
        t = flow.time_at(ratio)
        assert t.dtype == torch.float64 and t.shape == ()
        assert (flow.sigma(t) / flow.alpha(t)).item() == pytest.approx(ratio, rel=1e-9)
    for schedule in (VP, flow):
        for ratio in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="positive"):
                schedule.time_at(ratio)


def test_timestep_covers_its_range_and_no_more() -> None:
    t = VP.timestep(U, 0.02, 0.981)
    assert t.dtype == torch.int64
    assert torch.equal(t.unique(), torch.arange(20, 981))
    assert VP.timestep(U, 0.0, 1.0).max().item() == 999
    flow = FlowSchedule().timestep(U, 0.02, 0.98)
    assert flow.min().item() == 0.02 and 0.9799 < flow.max().item() <= 0.98
    shifted = FlowSchedule(shift=3.0).timestep(U, 0.0, 1.0)
    torch.testing.assert_close(shifted, 3 * U / (1 + 2 * U))
    assert shifted.max().item() <= 1
    for schedule in (VP, FlowSchedule()):
        with pytest.raises(ValueError, match="low"):
            schedule.timestep(U, 0.5, 0.5)
    with pytest.raises(ValueError, match="no time"):
        VP.timestep(U, 0.5, 0.5001)


@pytest.mark.parametrize("schedule", [VP, VP.truncated(99), FlowSchedule(), FlowSchedule(shift=3.0)])
def test_later_stays_between_the_time_and_the_end(schedule: Any) -> None:
    low = 0.02
    t = schedule.timestep(U, low, 1.0)
    first = schedule.timestep(torch.zeros(1).double(), low, 1.0)
    assert torch.equal(schedule.later(t, U, 0.0, low), t)
    for eta in (0.1, 0.5, 5.0):
        for u in (torch.zeros_like(U), torch.full_like(U, 0.7), torch.full_like(U, 1 - 2**-53)):
            later = schedule.later(t, u, eta, low)
            assert later.dtype == t.dtype
            assert bool((later >= t).all()) and bool((later <= schedule.last).all())
            assert bool(((later - t) <= u * eta * (t - first) + 1e-12).all())
    assert bool((schedule.later(t, torch.full_like(U, 0.7), 0.5, low) > t).any())


def test_later_by_hand() -> None:
    t, u = torch.tensor([300, 990, 20, 5]), torch.full((4,), 0.5).double()
    # 0.5 * min(0.1 * 280, 699) = 14; 0.5 * min(97, 9) = 4.5; nothing at t_low and before
    assert VP.later(t, u, 0.1, 0.02).tolist() == [314, 994, 20, 5]
    assert FlowSchedule().later(torch.tensor([0.3]), u[:1], 0.1, 0.02).item() == pytest.approx(0.314)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_add_noise(dtype: torch.dtype) -> None:
    reference: Any = DDPMScheduler(**STABLE_DIFFUSION)
    x0, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([10, 500, 999])
    noisy = VP.add_noise(x0.to(dtype), eps.to(dtype), t)
    assert noisy.dtype == dtype
    expected = reference.add_noise(x0, eps, t)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(noisy.double(), expected, rtol=tolerance, atol=tolerance)
    u = torch.tensor([0.0, 0.25, 1.0])
    mixed = (1 - u).view(3, 1, 1, 1) * x0 + u.view(3, 1, 1, 1) * eps
    torch.testing.assert_close(FlowSchedule().add_noise(x0, eps, u), mixed)
    assert broadcast(u, x0).shape == (3, 1, 1, 1)


def test_network_time() -> None:
    t = torch.tensor([0, 7])
    assert VP.network_time(t) is t
    assert FlowSchedule(num_train_timesteps=50).network_time(torch.tensor([0.5])).item() == 25
    assert VP.last == 999 and isinstance(VP.last, int) and FlowSchedule().last == 1.0


def test_errors() -> None:
    with pytest.raises(ValueError, match="linear, scaled_linear, squaredcos_cap_v2, sigmoid"):
        VPSchedule.from_config({"beta_schedule": "laplace"})
    for t in (-1, 1000):
        with pytest.raises(ValueError, match="outside 0 ... 999"):
            VP.sigma(torch.tensor([5, t]))
    with pytest.raises(ValueError, match="integers"):
        VP.alpha(torch.tensor([0.5]))
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            FlowSchedule().alpha(torch.tensor([0.5, bad]))
    with pytest.raises(ValueError, match="must fall"):
        VPSchedule(torch.tensor([0.5, 0.9]))
    with pytest.raises(ValueError, match=r"\(T,\)"):
        VPSchedule(torch.ones(2, 2))
    with pytest.raises(ValueError, match="positive"):
        FlowSchedule(shift=0.0)
