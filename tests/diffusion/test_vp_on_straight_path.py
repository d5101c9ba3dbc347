"""A variance-preserving network on the straight path: its own answers on its steps, the exact velocity between them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import Denoiser, FlowSchedule, GaussianTeacher, VPSchedule, ddim
from diffdistill.diffusion.any_step import any_step
from diffdistill.diffusion.vp_on_straight_path import VPOnStraightPath

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
ZERO_SNR = {**STABLE, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
KINDS = [COSINE, STABLE, {**STABLE, "prediction_type": "sample"}, ZERO_SNR]
FLOW = FlowSchedule()
MEAN, STD = 0.7, 0.4


def straight_time(schedule: VPSchedule, index: Tensor) -> Tensor:
    """t of the straight path with the same sigma / alpha."""
    alpha, sigma = schedule.alpha(index), schedule.sigma(index)
    return sigma / (alpha + sigma)


def gaussian(config: dict[str, Any]) -> tuple[VPOnStraightPath, Any]:
    """The exact teacher of N(mean, std^2) as a network of this process, at any time between steps."""
    process = VPOnStraightPath(config)
    steps = torch.arange(process.schedule.num_train_timesteps)
    angle = torch.atan2(process.schedule.sigma(steps), process.schedule.alpha(steps))

    def network(x: Tensor, time: Tensor, cond: Any) -> Tensor:
        below = time.floor().long().clamp(max=len(angle) - 2)
        at = torch.lerp(angle[below], angle[below + 1], time - below)
        alpha, sigma = (level.view(-1, 1, 1) for level in (at.cos(), at.sin()))
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = sigma / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        return {"v": alpha * eps - sigma * x0, "eps": eps, "x0": x0}[process.kind]

    return process, network


def on_the_path(process: VPOnStraightPath, network: Any) -> Denoiser:
    def velocity(x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        t = time / 1000
        x, time = process.inputs(x_t, t)
        return process.velocity(x_t, t, x, network(x, time, cond))

    return Denoiser(velocity, FLOW, "flow")


def points(n: int) -> Tensor:
    return torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("config", KINDS)
def test_on_a_step_the_network_gets_that_step_and_its_output_is_read_as_there(config: dict[str, Any]) -> None:
    process = VPOnStraightPath(config)
    schedule = process.schedule
    index = torch.tensor([0, 1, 17, 400, 800, 998, 999])
    t, x_t = straight_time(schedule, index), points(7)
    x, time = process.inputs(x_t, t)
    torch.testing.assert_close(time, index.double(), rtol=0, atol=1e-6)
    alpha, sigma = schedule.alpha(index).view(-1, 1, 1), schedule.sigma(index).view(-1, 1, 1)
    torch.testing.assert_close(x, x_t * (alpha + sigma))  # 1 - t = alpha / (alpha + sigma)
    answer = points(7).flip(0)
    on_vp = Denoiser(lambda x, t, c: answer, schedule, process.kind)(x, index, None)
    velocity = process.velocity(x_t, t, x, answer)
    torch.testing.assert_close(velocity, on_vp.flow, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(x_t - t.view(-1, 1, 1) * velocity, on_vp.x0, rtol=1e-7, atol=1e-7)
    if config is COSINE:  # the closed form
        a, b = (2 * t - 1) * (alpha + sigma).view(-1) ** 2, (alpha + sigma).view(-1)
        torch.testing.assert_close(velocity, a.view(-1, 1, 1) * x_t + b.view(-1, 1, 1) * answer)


@pytest.mark.parametrize("config", KINDS)
def test_between_the_steps_an_exact_teacher_stays_exact(config: dict[str, Any]) -> None:
    process, network = gaussian(config)
    first, last = (straight_time(process.schedule, torch.tensor([i])).item() for i in (0, 999))
    t = first + (last - first) * torch.linspace(0, 1, 201, dtype=torch.float64)
    expected = GaussianTeacher(FLOW, MEAN, STD, "flow")(points(201), t, None).flow
    found = on_the_path(process, network)(points(201), t, None).flow
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("config", KINDS)
def test_beyond_its_ends_the_velocity_is_finite_and_goes_on_from_them(config: dict[str, Any]) -> None:
    process, network = gaussian(config)
    denoiser = on_the_path(process, network)
    for index, end in ((0, 0.0), (999, 1.0)):
        edge = straight_time(process.schedule, torch.tensor(index)).item()
        near = edge + 1e-9 * (1 if end else -1) if edge != end else edge
        x = points(1).expand(3, -1, -1)
        value = denoiser(x, torch.tensor([edge, min(near, 1.0), end], dtype=torch.float64), None).flow
        assert bool(value.isfinite().all())
        torch.testing.assert_close(value[0], value[1], rtol=0, atol=1e-6)
    # from pure noise the sample is what the teacher takes for x0 at its last time
    x0 = denoiser(points(2), torch.ones(2, dtype=torch.float64), None).x0
    at = torch.tensor([999, 999])
    answer = network(points(2), at.double(), None)
    expected = Denoiser(lambda x, t, c: answer, process.schedule, process.kind)(points(2), at, None).x0
    torch.testing.assert_close(x0, expected)


@pytest.mark.parametrize("config", [COSINE, STABLE])
def test_sampled_at_the_same_times_it_is_the_teachers_ddim(config: dict[str, Any]) -> None:
    process = VPOnStraightPath(config)
    mix = torch.randn(2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 2

    def network(x: Tensor, time: Tensor, cond: Any) -> Tensor:
        return torch.tanh(x @ mix + time.double().view(-1, 1, 1) / 500)

    schedule, z = process.schedule, points(4)
    times = torch.arange(999, 0, -125)
    assert len(times) == 8
    teacher = Denoiser(network, schedule, process.kind)
    expected = ddim(lambda x, t: teacher(x, t, None), z, schedule, times)
    ours = on_the_path(process, network)
    start = z / (schedule.alpha(times[0]) + schedule.sigma(times[0]))
    found = any_step(lambda x, t, s: ours(x, t, None), start, FLOW, straight_time(schedule, times), target_fraction=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("config", KINDS)
def test_forward_mode_agrees_with_differences(config: dict[str, Any]) -> None:
    process, network = gaussian(config)
    denoiser, x = on_the_path(process, network), points(6)
    t = torch.tensor([0.0, 0.1234, 0.4567, 0.6543, 0.9, 1.0], dtype=torch.float64)
    along = torch.ones_like(x), torch.ones_like(t)
    tangent = torch.func.jvp(lambda x, t: denoiser(x, t, None).flow, (x, t), along)[1]
    assert bool(tangent.isfinite().all())
    inside = slice(1, 5)
    h = 1e-6
    up, down = (denoiser(x + sign * h, (t + sign * h).clamp(0, 1), None).flow for sign in (1, -1))
    torch.testing.assert_close(tangent[inside], ((up - down) / (2 * h))[inside], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts noise and its last time holds no signal"):
        VPOnStraightPath({**ZERO_SNR, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="flow prediction on a variance-preserving"):
        VPOnStraightPath({**STABLE, "prediction_type": "flow_prediction"})
    with pytest.raises(ValueError, match="more than there is signal"):
        VPOnStraightPath({"trained_betas": [0.01, 0.02]})
    process = VPOnStraightPath({**STABLE, "clip_sample": False})
    assert process.settings == STABLE
