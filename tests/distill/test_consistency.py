"""Consistency distillation against the exact consistency function of Gaussian data, and LCM's own constants."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import Denoiser, FlowSchedule, GaussianTeacher, Prediction, Schedule, VPSchedule, ddim
from diffdistill.distill.consistency import (
    Boundary,
    consistency_loss,
    consistency_sample,
    guided_ddim_step,
    pseudo_huber,
    skipped_times,
)

VP = VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
MEAN, STD = 0.7, 0.4


class ExactConsistency:
    """A score model whose f is the exact end at t = 0 of the path through (x_t, t), for N(MEAN, STD^2)."""

    def __init__(self, schedule: Schedule, boundary: Boundary) -> None:
        self.schedule, self.boundary = schedule, boundary

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
        def level(at: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = self.schedule.alpha(at)[:, None], self.schedule.sigma(at)[:, None]
            return alpha, ((alpha * STD) ** 2 + sigma**2).sqrt()

        (a, d), (a_0, d_0) = level(t), level(torch.zeros_like(t))
        end = a_0 * MEAN + d_0 / d * (x_t - a * MEAN)
        skip, out = (c[:, None] for c in self.boundary.coefficients(self.schedule, t))
        x0 = torch.where(out > 0, (end - skip * x_t) / torch.where(out > 0, out, 1), 0)
        return Prediction(x_t, x0, "x0", a, self.schedule.sigma(t)[:, None])


def batch(n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 3, generator=g, dtype=torch.float64)
    return MEAN + STD * x0, eps, torch.rand(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VP, FlowSchedule()])
def test_the_exact_function_is_left_alone_as_the_teachers_step_shrinks(schedule: Schedule) -> None:
    boundary = Boundary()
    exact, teacher = ExactConsistency(schedule, boundary), GaussianTeacher(schedule, MEAN, STD, "v")
    x0, eps, u = batch()
    errors = []
    for steps in (50, 100, 200):
        t, r = skipped_times(schedule, u, steps)
        # small c: near the mean absolute distance, which falls with the square of the step
        errors.append(consistency_loss(exact, exact, teacher, x0, t, r, eps, None, None, 1.0, huber=1e-9).item())
    assert errors[0] < 2e-3
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.35)
    scaled = Denoiser(lambda x, t, c: 0.9 * x, schedule, "x0")  # some other network
    assert consistency_loss(scaled, scaled, teacher, x0, t, r, eps, None, None, 1.0) > 10 * errors[-1]


def test_of_a_single_point_the_step_is_exact_and_the_loss_zero() -> None:
    teacher = GaussianTeacher(FlowSchedule(), MEAN, 0.0, "flow")

    class Point:
        schedule = FlowSchedule()

        def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
            skip, out = (c[:, None] for c in Boundary().coefficients(self.schedule, t))
            return Prediction(x_t, (MEAN - skip * x_t) / out.clamp_min(1e-300), "x0", 1 - t[:, None], t[:, None])

    x0, eps, u = batch()
    t, r = skipped_times(Point.schedule, u * 0.9 + 0.1, 10)  # r > 0
    loss = consistency_loss(Point(), Point(), teacher, torch.full_like(x0, MEAN), t, r, eps, None, None, 1.0)
    assert loss < 1e-7


def test_f_is_the_identity_at_time_0_and_the_network_alone_later() -> None:
    boundary, network = Boundary(), Denoiser(lambda x, t, c: x.cos(), VP, "x0")
    x = batch()[0]
    assert torch.equal(boundary(network, x, torch.zeros(64, dtype=torch.long), None), x)
    torch.testing.assert_close(boundary(network, x, torch.full((64,), 999), None), x.cos(), rtol=0, atol=1e-6)


def test_constants_and_grid_are_those_of_diffusers_lcm() -> None:
    from diffusers import LCMScheduler

    scheduler: Any = LCMScheduler()
    for t in (0, 19, 259, 999):
        ours = Boundary().coefficients(VP, torch.tensor([t]))
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(t)
        assert [c.item() for c in ours] == pytest.approx([float(c) for c in theirs])
    t, r = skipped_times(VP, (torch.arange(50) + 0.5) / 50, 50)
    assert t.tolist() == list(range(19, 1000, 20)) and r.tolist() == [0, *range(19, 980, 20)]
    assert t.dtype == torch.int64
    with pytest.raises(ValueError, match="30 steps do not divide"):
        skipped_times(VP, torch.rand(3), 30)


def test_the_step_is_ddims_and_guidance_is_the_teachers() -> None:
    teacher = GaussianTeacher(VP, lambda c: c, STD, "eps")
    x = batch()[1]
    t, r = torch.full((64,), 519), torch.full((64,), 499)
    cond, null = torch.ones(64, 1, dtype=torch.float64), torch.zeros(64, 1, dtype=torch.float64)
    made = guided_ddim_step(teacher, x, t, r, cond, null, 3.0)
    guided = teacher(x, t, 3.0 * cond)  # linear in the mean
    seen: list[Tensor] = []
    ddim(lambda a, b: guided, x, VP, [519, 499], callback=lambda i, t, x, p: seen.append(x))
    torch.testing.assert_close(made, seen[0])
    scales = torch.where(torch.arange(64) < 32, 3.0, 1.0)
    each = guided_ddim_step(teacher, x, t, r, cond, null, scales)
    torch.testing.assert_close(each[:32], made[:32])
    torch.testing.assert_close(each[32:], guided_ddim_step(teacher, x, t, r, cond, null, 1.0)[32:])


def test_only_the_student_gets_a_gradient_and_both_have_their_own_condition() -> None:
    linear, averaged = (torch.nn.Linear(3, 3).double() for _ in range(2))
    seen: list[tuple[float, bool]] = []

    def network(layer: torch.nn.Module) -> Denoiser:
        def call(x: Tensor, t: Tensor, cond: Any) -> Tensor:
            seen.append((cond[0].item(), torch.is_grad_enabled()))
            return layer(x)

        return Denoiser(call, VP, "v")

    x0, eps, u = batch()
    t, r = skipped_times(VP, u, 50)
    consistency_loss(
        network(linear), network(averaged), GaussianTeacher(VP, MEAN, STD), x0, t, r, eps, None, None, 1.0,
        student_cond=torch.tensor([7.5]),
    ).backward()  # fmt: skip
    assert linear.weight.grad is not None and averaged.weight.grad is None
    # the pass with a graph is the first: autocast keeps the weights that the first pass has cast
    assert seen == [(7.5, True), (7.5, False)]


def test_pseudo_huber_is_quadratic_then_linear() -> None:
    x = torch.zeros(1)
    assert pseudo_huber(x, x + 1e-2, 10.0).item() == pytest.approx(1e-4 / 20, rel=0.1)
    assert pseudo_huber(x, x + 100, 1e-3).item() == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_samples_of_the_exact_function_have_the_law_of_the_data(steps: int) -> None:
    schedule, boundary = FlowSchedule(), Boundary()
    z = torch.randn(40000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = consistency_sample(
        ExactConsistency(schedule, boundary), z, [1 - i / steps for i in range(steps)], None, boundary,
        torch.Generator().manual_seed(2),
    )  # fmt: skip
    assert abs(x.mean().item() - MEAN) < 0.01 and abs(x.std().item() - STD) < 0.01
