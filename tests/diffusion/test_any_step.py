"""Sampling with two times: exact flow maps are walked exactly, what s means, noise, and energy-preserving guidance."""

from typing import Any

import pytest
import torch
from torch import Tensor
from two_time_toy import exact_average_velocity

from diffdistill.diffusion import FlowSchedule, GaussianTeacher, Prediction, VPSchedule, euler, guided
from diffdistill.diffusion.any_step import (
    TwoTimeDenoiser,
    any_step,
    any_step_times,
    guided_any_step,
    preserve_energy,
)

FLOW = FlowSchedule()


def noise(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_exact_flow_map_gives_one_sample_in_any_number_of_steps(steps: int, shift: float) -> None:
    schedule = FlowSchedule(shift=shift)
    denoiser = TwoTimeDenoiser(exact_average_velocity(0.7, 0.4), schedule)
    x = any_step(lambda x, t, s: denoiser(x, t, s, None), noise(), schedule, steps)
    torch.testing.assert_close(x, 0.7 + 0.4 * noise(), rtol=0, atol=1e-6)


def test_at_fraction_0_it_is_eulers_method_of_flow_matching_to_the_bit() -> None:
    denoiser = TwoTimeDenoiser(exact_average_velocity(0.7, 0.4), FLOW)
    ours = any_step(lambda x, t, s: denoiser(x, t, s, None), noise(), FLOW, 5, target_fraction=0.0)
    times = any_step_times(FLOW, 5)
    assert torch.equal(ours, euler(lambda x, t: denoiser.instantaneous(x, t, None), noise(), FLOW, times))
    teacher = GaussianTeacher(FLOW, 0.7, 0.4, "flow")
    torch.testing.assert_close(ours, euler(lambda x, t: teacher(x, t, None), noise(), FLOW, times))


@pytest.mark.parametrize(
    ("fraction", "expected"), [(1.0, [0.5, 0.0]), (0.0, [1.0, 0.5]), (0.5, [0.75, 0.25]), (1.5, [0.25, 0.0])]
)
def test_the_network_gets_a_time_that_far_into_the_step(fraction: float, expected: list[float]) -> None:
    seen: list[tuple[float, float]] = []

    def network(x: Tensor, time: Tensor, earlier: Tensor, cond: Any) -> Tensor:
        seen.append((time[0].item() / 1000, earlier[0].item() / 1000))
        return torch.zeros_like(x)

    denoiser = TwoTimeDenoiser(network, FLOW)
    any_step(lambda x, t, s: denoiser(x, t, s, None), noise(), FLOW, 2, target_fraction=fraction)
    assert seen == [(1.0, expected[0]), (0.5, expected[1])]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_noise_the_law_stays_that_of_the_data(eta: float) -> None:
    teacher = GaussianTeacher(FLOW, 0.7, 0.4, "flow")
    g = torch.Generator().manual_seed(1)
    z = torch.randn(40000, 1, generator=g, dtype=torch.float64)
    x = any_step(lambda x, t, s: teacher(x, t, None), z, FLOW, 100, eta=eta, generator=g)
    assert abs(x.mean().item() - 0.7) < 0.01 and abs(x.std().item() - 0.4) < 0.02


def test_one_ancestral_step_from_t_to_s_is_the_posterior_given_x0() -> None:
    # from t = 1, where x holds nothing, it is fresh noise on the predicted x0
    x0 = torch.full((50000, 1), 2.0, dtype=torch.float64)
    z, seen = torch.randn_like(x0), []

    def predict(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
        t = t[:, None]
        return Prediction(x, x0, "x0", 1 - t, t)

    any_step(predict, z, FLOW, [1.0, 0.6], eta=1.0, generator=torch.Generator().manual_seed(3),
             callback=lambda i, t, x, p: seen.append(x))  # fmt: skip
    fresh = (seen[0] - 0.4 * x0) / 0.6
    assert abs(fresh.std().item() - 1) < 0.02 and abs((fresh * z).mean().item()) < 0.02
    torch.testing.assert_close(seen[1], x0)


def rows() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    t = torch.rand(6, generator=g, dtype=torch.float64) * 0.9 + 0.1
    return noise(), t, t / 2


def network(x: Tensor, time: Tensor, earlier: Tensor, cond: Tensor) -> Tensor:
    shape = (-1, 1, 1)
    return (x * cond.view(shape)).tanh() + 1e-3 * time.view(shape) - 2e-3 * earlier.view(shape)


@pytest.mark.parametrize("scale", [2.0, 5.0, 0.0])
def test_guided_samples_have_the_energy_of_the_conditional_ones(scale: float) -> None:
    x, t, s = rows()
    cond, null = torch.linspace(1, 2, 6), torch.full((1,), -0.5)
    denoiser = TwoTimeDenoiser(network, FLOW)
    plain = guided_any_step(denoiser, x, t, s, cond, null, scale, energy_preserving=False)
    kept = guided_any_step(denoiser, x, t, s, cond, null, scale)
    wanted = denoiser(x, t, s, cond)
    torch.testing.assert_close(kept.x0.flatten(1).square().sum(1), wanted.x0.flatten(1).square().sum(1))
    ratio = kept.x0 / plain.x0  # a positive number a sample
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert (ratio > 0).all() and (ratio - 1).abs().max() > 1e-2
    # other kinds are read from the rescaled sample
    a, b = (1 - t)[:, None, None], t[:, None, None]
    torch.testing.assert_close(kept.flow, (x - kept.x0) / b)
    torch.testing.assert_close(a * kept.x0 + b * kept.eps, x)
    # and both passes had their own s: guidance is that of two separate passes
    null_rows = null.expand(6)
    by_hand = denoiser(x, t, s, null_rows).flow + scale * (wanted.flow - denoiser(x, t, s, null_rows).flow)
    torch.testing.assert_close(plain.flow, by_hand)


def test_energy_is_kept_on_any_schedule_and_unguided_is_one_plain_pass() -> None:
    vp = VPSchedule.from_config({"beta_schedule": "scaled_linear"})
    teacher = GaussianTeacher(vp, lambda c: c, 0.5, "eps")
    x, t = noise(), torch.full((6,), 500)
    cond = torch.ones(1, 1, 1)
    both = guided(teacher, x, t, cond, -cond, 4.0)
    kept = preserve_energy(both, teacher(x, t, cond))
    torch.testing.assert_close(kept.x0.flatten(1).norm(dim=1), teacher(x, t, cond).x0.flatten(1).norm(dim=1))
    x, t, s = rows()
    cond, denoiser = torch.ones(6), TwoTimeDenoiser(network, FLOW)
    assert torch.equal(guided_any_step(denoiser, x, t, s, cond, None, 1.0).value, denoiser(x, t, s, cond).value)


def test_a_guided_sample_of_no_energy_stays_finite() -> None:
    zero = Prediction(noise(), torch.zeros_like(noise()), "x0", torch.tensor(0.5), torch.tensor(0.5))
    some = Prediction(noise(), noise(), "x0", torch.tensor(0.5), torch.tensor(0.5))
    assert torch.equal(preserve_energy(zero, some).x0, zero.x0)


def test_bad_input_is_named() -> None:
    denoiser = TwoTimeDenoiser(network, FLOW)
    x, t, s = rows()
    for fraction in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"target_fraction = {fraction}"):
            any_step(lambda x, t, s: denoiser(x, t, s, None), x, FLOW, 2, target_fraction=fraction)
    with pytest.raises(ValueError, match="n = 0"):
        any_step(lambda x, t, s: denoiser(x, t, s, None), x, FLOW, 0)
    with pytest.raises(ValueError, match="s has shape"):
        denoiser(x, t, s[:4], torch.ones(6))
