"""BOOT's step, targets and losses against DDIM, the closed-form trajectories of Gaussian teachers, and their own fixed
point.

For data N(mu, v^2) the ODE keeps (x_t - alpha mu) / sqrt(alpha^2 v^2 + sigma^2): the whole trajectory from z is known.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import Denoiser, FlowSchedule, GaussianTeacher, VPSchedule, broadcast, ddim, euler
from diffdistill.distill import (
    BOOTSTRAP_WEIGHTS,
    bootstrap_loss,
    boundary_loss,
    signal_step,
    signal_update,
    teacher_signal,
)

VP = VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
FLOW = FlowSchedule()
SCHEDULES = pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
MEAN, STD = 1.5, 0.4
DOUBLE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def times(schedule: Any, *fractions: float) -> Tensor:
    found = torch.tensor(fractions, dtype=torch.float64)
    return (found * 1000).round().long() if isinstance(schedule, VPSchedule) else found


def noise(size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x_t: Tensor, time: Tensor, cond: Any = None) -> Tensor:
    """No exact score, so that a wrong time or a wrong level shows."""
    return 0.8 * x_t.tanh() + 0.1 * (broadcast(time, x_t).double() * 0.01).sin()


def exact_signal(schedule: Any, z: Tensor, start: Tensor, t: Tensor) -> Tensor:
    """y_t of the Gaussian teacher's ODE whose x at `start` is that noise; `start` and t of shape () or (B,)."""
    constant = None
    for time in (start, t):
        alpha, sigma = (broadcast(level(time), z) for level in (schedule.alpha, schedule.sigma))
        scale = ((alpha * STD) ** 2 + sigma**2).sqrt()
        if constant is None:
            constant = (z - alpha * MEAN) / scale
    return (alpha * MEAN + scale * constant - sigma * z) / alpha


@SCHEDULES
@pytest.mark.parametrize("kind", ["v", "x0"])
def test_a_step_is_that_of_ddim(schedule: Any, kind: Any) -> None:
    """For any network: y + D (f - y) is (x_s - sigma_s z) / alpha_s of the sampler, step after step."""
    teacher = Denoiser(network, schedule, kind)
    grid = times(schedule, 0.9, 0.55, 0.3, 0.12, 0.01)
    z = noise()
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    y = 0.3 * noise(seed=1)
    seen: list[Tensor] = []
    # the sampler's last step goes beyond the grid and is not compared
    euler(
        lambda x_t, t: teacher(x_t, t, None), alpha[0] * y + sigma[0] * z, schedule, grid,
        callback=lambda index, t, x, prediction: seen.append(x),
    )  # fmt: skip
    for i in range(len(grid) - 1):
        t, s = grid[i].expand(4), grid[i + 1].expand(4)
        f = teacher_signal(teacher, y, z, t, s, None, None, 1.0)
        y = signal_update(y, f, signal_step(schedule, t, s))
        torch.testing.assert_close(y, (seen[i] - sigma[i + 1] * z) / alpha[i + 1], **DOUBLE)


@SCHEDULES
def test_the_step_size_is_float64_and_finite_at_both_ends(schedule: Any) -> None:
    t, s = times(schedule, 0.9, 0.5, 0.06), times(schedule, 0.5, 0.499, 0.05)
    k = schedule.alpha(t) * schedule.sigma(s) / (schedule.sigma(t) * schedule.alpha(s))
    d = signal_step(schedule, t, s)
    assert d.dtype == torch.float64
    torch.testing.assert_close(d, 1 - k, rtol=1e-11, atol=0)
    if schedule is FLOW:
        one = torch.tensor([1.0, 0.7], dtype=torch.float64)
        assert signal_step(FLOW, one, torch.tensor([0.7, 0.0], dtype=torch.float64)).tolist() == [1.0, 1.0]
    else:
        zero = VPSchedule.from_config({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True})
        assert signal_step(zero, torch.tensor([999]), torch.tensor([960])).item() == 1.0


@SCHEDULES
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_one_sample_is_reached_exactly_by_any_step(schedule: Any, solver: str) -> None:
    """Of data of deviation 0 the teacher always answers the mean: f is constant, and the step is exact."""
    teacher = GaussianTeacher(schedule, MEAN, 0.0, "v")
    t, s = times(schedule, 0.95, 0.8, 0.4, 0.3), times(schedule, 0.1, 0.75, 0.01, 0.299)
    z, y = noise(), noise(seed=1)
    f = teacher_signal(teacher, y, z, t, s, None, None, 1.0, solver)
    torch.testing.assert_close(f, torch.full_like(f, MEAN), **DOUBLE)
    k = broadcast(schedule.alpha(t) * schedule.sigma(s) / (schedule.sigma(t) * schedule.alpha(s)), y)
    torch.testing.assert_close(signal_update(y, f, signal_step(schedule, t, s)), k * y + (1 - k) * MEAN, **DOUBLE)


def test_the_closed_form_trajectory_obeys_the_signal_ode() -> None:
    """dy / dlambda = f(x_t, t) - y by central differences."""
    teacher, z = GaussianTeacher(FLOW, MEAN, STD, "flow"), noise()
    start, h = torch.tensor(0.99, dtype=torch.float64), 1e-5
    for t in (torch.tensor(x, dtype=torch.float64) for x in (0.9, 0.5, 0.1)):
        y, before, after = (exact_signal(FLOW, z, start, time) for time in (t, t - h, t + h))
        slope = (before - after) / (FLOW.half_log_snr(t - h) - FLOW.half_log_snr(t + h))
        f = teacher(FLOW.add_noise(y, z, t.expand(4)), t.expand(4), None).x0
        torch.testing.assert_close(slope, f - y, rtol=1e-7, atol=1e-7)


def integrate(solver: str, n: int) -> float:
    """Largest error at t = .1 of n steps from .9."""
    teacher, z = GaussianTeacher(FLOW, MEAN, STD, "flow"), noise()
    grid = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
    y = exact_signal(FLOW, z, grid[0], grid[0])
    for t, s in zip(grid[:-1].unsqueeze(1), grid[1:].unsqueeze(1), strict=True):
        t, s = t.expand(4), s.expand(4)
        y = signal_update(y, teacher_signal(teacher, y, z, t, s, None, None, 1.0, solver), signal_step(FLOW, t, s))
    return (y - exact_signal(FLOW, z, grid[0], grid[-1])).abs().max().item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_orders(solver: str, order: int) -> None:
    errors = [integrate(solver, n) for n in (32, 64, 128)]
    slopes = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert slopes == pytest.approx([order] * 2, abs=0.12), errors


def test_the_second_order_holds_on_a_discrete_schedule_where_midpoints_are_rounded() -> None:
    """Steps of 37 have no integer in the middle. Error per unit of time against Euler's, both at once halved."""
    teacher, z = GaussianTeacher(VP, MEAN, STD, "v"), noise()

    def error(solver: str, step: int) -> float:
        grid = torch.arange(900, 900 - 740 - 1, -step)
        y = exact_signal(VP, z, grid[0], grid[0])
        for t, s in zip(grid[:-1, None], grid[1:, None], strict=True):
            t, s = t.expand(4), s.expand(4)
            y = signal_update(y, teacher_signal(teacher, y, z, t, s, None, None, 1.0, solver), signal_step(VP, t, s))
        return (y - exact_signal(VP, z, grid[0], grid[-1])).abs().max().item()

    fine, coarse = error("midpoint", 37), error("midpoint", 74)
    assert fine < coarse / 3.2 and fine < error("euler", 37) / 10


def test_guidance_is_folded_into_the_target() -> None:
    def mean(cond: Tensor) -> Tensor:
        return cond

    teacher = GaussianTeacher(VP, mean, 0.0, "v")
    cond, null = torch.full((4, 3), 2.0, dtype=torch.float64), torch.full((1, 3), 0.5, dtype=torch.float64)
    t, s = times(VP, 0.9, 0.6, 0.3, 0.2), times(VP, 0.8, 0.5, 0.2, 0.1)
    for solver in ("euler", "midpoint"):
        f = teacher_signal(teacher, noise(), noise(), t, s, cond, null, 3.0, solver)
        torch.testing.assert_close(f, torch.full_like(f, 0.5 + 3.0 * 1.5), **DOUBLE)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_without_signal_or_without_noise_the_second_pass_has_no_say(solver: str) -> None:
    teacher = Denoiser(network, FLOW, "flow")
    t, s = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 0.5], [0.9, 0.0]))
    z, y = noise(2), noise(2, 1)
    options = (teacher, y, z, t, s, None, None, 1.0)
    torch.testing.assert_close(teacher_signal(*options, solver), teacher_signal(*options, "euler"), **DOUBLE)


# ---- losses -------------------------------------------------------------------------------------------------------


def batch() -> dict[str, Tensor]:
    y_t, f = noise(seed=1), noise(seed=2)
    d = signal_step(VP, times(VP, 0.9, 0.6, 0.3, 0.03), times(VP, 0.86, 0.56, 0.26, 0.029))
    return {"y_t": y_t, "f": f, "d": d}


def test_inverse_square_is_the_error_of_the_x0_that_the_finite_difference_implies() -> None:
    b, y_s = batch(), noise(seed=3)
    implied = b["y_t"] + (y_s - b["y_t"]) / b["d"][:, None]
    torch.testing.assert_close(bootstrap_loss(y_s, **b, weight="inverse_square"), (implied - b["f"]).square().mean())


def test_weights() -> None:
    d = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    expected = {"inverse_square": [1, 4, 100, 10000], "clipped": [1, 4, 100, 100], "uniform": [1, 1, 1, 1]}
    assert expected.keys() == BOOTSTRAP_WEIGHTS.keys()
    b, y_s = batch(), noise(seed=3)
    error = (y_s - signal_update(b["y_t"], b["f"], d)).square()
    for name, weights in expected.items():
        weighted = torch.tensor(weights)[:, None] * error
        torch.testing.assert_close(bootstrap_loss(y_s, b["y_t"], b["f"], d, name), weighted.mean(), msg=name)


@pytest.mark.parametrize("weight", list(BOOTSTRAP_WEIGHTS))
def test_loss_and_gradient_vanish_at_the_exact_solution(weight: str) -> None:
    """On the trajectory of a teacher whose f is constant along it, for which a step is exact."""
    teacher, z = GaussianTeacher(VP, MEAN, 0.0, "v"), noise()
    last, t, s = torch.tensor(999), times(VP, 0.9, 0.6, 0.3, 0.1), times(VP, 0.86, 0.2, 0.26, 0.01)

    def exact(time: Tensor) -> Tensor:
        """y = mean + k (y_999 - mean), where x_999 = z."""
        y_last = (1 - VP.sigma(last)) / VP.alpha(last) * z
        k = VP.alpha(last) * VP.sigma(time) / (VP.sigma(last) * VP.alpha(time))
        return MEAN + broadcast(k, z) * (y_last - MEAN)

    y_s = exact(s).requires_grad_()
    f = teacher_signal(teacher, exact(t), z, t, s, None, None, 1.0)
    loss = bootstrap_loss(y_s, exact(t), f, signal_step(VP, t, s), weight)
    (grad,) = torch.autograd.grad(loss, y_s)
    assert loss.item() < 1e-24 and grad.abs().max().item() < 1e-11
    shifted = exact(s) + 0.1
    assert bootstrap_loss(shifted, exact(t), f, signal_step(VP, t, s), weight).item() > 1e-3


def test_the_gradient_reaches_the_student_at_s_alone() -> None:
    mean = torch.tensor(MEAN, dtype=torch.float64, requires_grad=True)
    teacher, z = GaussianTeacher(VP, mean, STD, "v"), noise()
    t, s = times(VP, 0.9, 0.6, 0.3, 0.1), times(VP, 0.86, 0.56, 0.26, 0.06)
    y_t, y_s, y_first = (noise(seed=seed).requires_grad_() for seed in (1, 2, 3))
    f = teacher_signal(teacher, y_t, z, t, s, None, None, 1.0, "heun")
    assert not f.requires_grad
    d = signal_step(VP, t, s)
    loss = bootstrap_loss(y_s, y_t, f, d, "uniform") + boundary_loss(y_first, teacher(z, t, None).x0)
    loss.backward()
    assert y_t.grad is None and mean.grad is None and y_s.grad is not None and y_first.grad is not None
    target = signal_update(y_t.detach(), f, d)
    torch.testing.assert_close(y_s.grad, 2 * (y_s.detach() - target) / y_s.numel(), **DOUBLE)


def test_the_fixed_point_is_the_teachers_own_ddim_trajectory() -> None:
    """A student affine in z at each time of a grid, trained on all its steps at once, arrives at DDIM on that grid."""
    torch.manual_seed(0)
    mix = torch.tensor([[0.5, 0.3], [0.0, 0.2]], dtype=torch.float64)
    covariance = mix @ mix.T
    middle = torch.tensor([1.0, -0.5], dtype=torch.float64)

    def exact_v(x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        """The exact v of data N(middle, mix mix^T), whose dimensions hang together."""
        alpha, sigma = (level(time.long())[:, None] for level in (VP.alpha, VP.sigma))
        marginal = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * torch.eye(2, dtype=torch.float64)
        whitened = torch.linalg.solve(marginal, (x_t - alpha * middle)[..., None])
        x0, eps = middle + alpha * (covariance @ whitened)[..., 0], sigma * whitened[..., 0]
        return alpha * eps - sigma * x0

    teacher = Denoiser(exact_v, VP, "v")
    grid = torch.tensor([999, 860, 700, 500, 300, 120, 10])
    tables = {"slope": torch.zeros(7, 2, 2, dtype=torch.float64), "offset": torch.zeros(7, 2, dtype=torch.float64)}
    slope, offset = (tables[name].requires_grad_() for name in ("slope", "offset"))

    def student(z: Tensor, index: Tensor) -> Tensor:
        return (slope[index] @ z[..., None])[..., 0] + offset[index]

    # five points with mean 0 and covariance 1 stand for the noise: what is affine in z is settled by them
    z = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]], dtype=torch.float64)
    index = torch.arange(6).repeat_interleave(5)
    every = z.repeat(6, 1)
    t, s = grid[index], grid[index + 1]
    first = torch.full((5,), 999)
    optimiser = torch.optim.SGD([slope, offset], lr=3.0)
    for _ in range(400):
        with torch.no_grad():
            y_t = student(every, index)
            f = teacher_signal(teacher, y_t, every, t, s, None, None, 1.0)
            f_first = teacher(z, first, None).x0
        loss = bootstrap_loss(student(every, index + 1), y_t, f, signal_step(VP, t, s), "uniform")
        loss = loss + 0.25 * boundary_loss(student(z, torch.zeros(5, dtype=torch.long)), f_first)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    fresh = torch.randn(8, 2, dtype=torch.float64)
    seen: list[Tensor] = []
    alpha, sigma = VP.alpha(grid), VP.sigma(grid)
    start = alpha[0] * teacher(fresh, torch.full((8,), 999), None).x0 + sigma[0] * fresh
    ddim(lambda x, t: teacher(x, t, None), start, VP, grid, callback=lambda i, t, x, p: seen.append(x))
    trajectory = [start, *seen[:-1]]
    for i, x in enumerate(trajectory):
        y = student(fresh, torch.full((8,), i)).detach()
        torch.testing.assert_close(y, (x - sigma[i] * fresh) / alpha[i], rtol=0, atol=1e-8)


def test_the_difference_is_formed_in_float32() -> None:
    """In bfloat16 y_t + D (f - y_t) is y_t itself where D is small: the step would be lost."""
    y_t = torch.ones(1, 4, dtype=torch.bfloat16)
    f, d = torch.full_like(y_t, 2.0), torch.tensor([1e-3], dtype=torch.float64)
    assert torch.equal(y_t + d.bfloat16()[:, None] * (f - y_t), y_t)
    assert signal_update(y_t, f, d)[0, 0].item() == pytest.approx(1.001, abs=1e-6)
    loss = bootstrap_loss(y_t, y_t, f, d, "inverse_square")
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1.0, rel=1e-5)
    assert boundary_loss(y_t, y_t.float() + 1e-3).item() == pytest.approx(1e-6, rel=1e-3)


def test_errors() -> None:
    z, t, s = noise(), times(VP, 0.9, 0.6, 0.3, 0.1), times(VP, 0.86, 0.56, 0.3, 0.06)
    teacher = GaussianTeacher(VP, 0.0, 1.0, "v")
    with pytest.raises(ValueError, match="earlier"):
        signal_step(VP, t, s)
    with pytest.raises(ValueError, match="must be equal"):
        signal_step(VP, t, s[:2])
    with pytest.raises(ValueError, match="Did you mean 'euler'"):
        teacher_signal(teacher, z, z, t, t - 1, None, None, 1.0, "eulr")
    with pytest.raises(ValueError, match="the noise"):
        teacher_signal(teacher, z, z[:, :2], t, t - 1, None, None, 1.0)
    with pytest.raises(ValueError, match="Did you mean 'clipped'"):
        bootstrap_loss(z, z, z, torch.ones(4), "cliped")
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_loss(z, z[:, :2], z, torch.ones(4), "uniform")
    with pytest.raises(ValueError, match="the teacher's"):
        boundary_loss(z, z[:2])
