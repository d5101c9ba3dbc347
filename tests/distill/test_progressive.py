"""x-tilde against two DDIM steps and the paper's own formula; all stages on Gaussians, where each is affine."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import Denoiser, GaussianTeacher, Prediction, VPSchedule, broadcast, ddim, timesteps
from diffdistill.distill.progressive import (
    PROGRESSIVE_WEIGHTS,
    ddim_path,
    halving_grid,
    halvings,
    progressive_loss,
    stage_at,
    two_step_target,
)

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = VPSchedule.from_config(CONFIG)
ZERO_SNR = VPSchedule.from_config({**CONFIG, "rescale_betas_zero_snr": True})
DOUBLE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def noise(size: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x_t: Tensor, time: Tensor, cond: Any = None) -> Tensor:
    """No exact score, so that a wrong time or a wrong level shows."""
    return 0.8 * x_t.tanh() + 0.1 * (broadcast(time, x_t).double() * 0.01).sin()


def levels(schedule: VPSchedule, t: int) -> tuple[float, float]:
    at = torch.tensor(max(t, 0))
    return (schedule.alpha(at).item(), schedule.sigma(at).item()) if t >= 0 else (1.0, 0.0)


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
@pytest.mark.parametrize("times", [(999, 749, 499), (500, 499, 498), (249, 124, -1), (1, 0, -1)])
def test_one_step_with_x_tilde_is_two_steps_of_the_predecessor(kind: Any, times: tuple[int, int, int]) -> None:
    model, x_t, seen = Denoiser(network, VP, kind), noise(), []
    visited = [t for t in times if t >= 0]
    ddim(lambda x, t: model(x, t, None), x_t, VP, visited, callback=lambda index, t, x, prediction: seen.append(x))
    found = two_step_target(model, x_t, *(torch.full((4,), t) for t in times), None, None, 1.0)
    (alpha, sigma), (alpha2, sigma2) = levels(VP, times[0]), levels(VP, times[2])
    torch.testing.assert_close(alpha2 * found + sigma2 / sigma * (x_t - alpha * found), seen[1], **DOUBLE)
    paper = (seen[1] - sigma2 / sigma * x_t) / (alpha2 - sigma2 / sigma * alpha)
    torch.testing.assert_close(found, paper, rtol=1e-7, atol=1e-7)  # whose differences cancel in short steps


def test_a_start_without_signal_is_a_start() -> None:
    model, x_t = Denoiser(network, ZERO_SNR, "v"), noise()
    t, middle, end = (torch.full((4,), t) for t in (999, 499, -1))
    found = two_step_target(model, x_t, t, middle, end, None, None, 1.0)
    torch.testing.assert_close(found, ddim(lambda x, t: model(x, t, None), x_t, ZERO_SNR, [999, 499]), **DOUBLE)


def test_samples_of_a_batch_may_stand_at_different_steps_and_guidance_is_that_of_both() -> None:
    def by_condition(x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        return network(x_t, time) * (1 + cond)

    model, x_t, cond, null = Denoiser(by_condition, VP, "v"), noise(2), torch.ones(2, 1), torch.zeros(1, 1)
    t, middle, end = torch.tensor([999, 499]), torch.tensor([749, 249]), torch.tensor([499, -1])
    both = two_step_target(model, x_t, t, middle, end, cond, null, 2.5)
    strong = Denoiser(lambda x, time, c: network(x, time) * 3.5, VP, "v")  # 1 + 2.5 (2 - 1)
    for i in range(2):
        one = slice(i, i + 1)
        alone = two_step_target(strong, x_t[one], t[one], middle[one], end[one], None, None, 1.0)
        torch.testing.assert_close(both[one], alone, **DOUBLE)


class Affine:
    """x0 = a x_t + b at each time of a grid."""

    def __init__(self, schedule: VPSchedule, coefficients: dict[int, tuple[float, float]]) -> None:
        self.schedule, self.coefficients = schedule, coefficients

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
        a, b = torch.tensor([self.coefficients[int(time)] for time in t], dtype=torch.float64).T[:, :, None]
        return Prediction(x_t, a * x_t + b, "x0", *(broadcast(f(t), x_t) for f in (VP.alpha, VP.sigma)))


@pytest.mark.parametrize("final", [1, 2])
def test_the_fixed_point_of_all_stages_is_the_teachers_own_ddim_answer(final: int) -> None:
    """16 -> 8 -> 4 -> 2 (-> 1), each stage solved exactly, guidance in the first; DDIM's steps multiplied out."""
    scale, std, data = 2.5, 0.4, 1.5
    teacher = GaussianTeacher(VP, lambda cond: cond, std, "v")
    fine = halving_grid(900, 16)
    predecessor: Any = teacher
    probes, cond, null = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.full((2, 1), data), torch.zeros(1, 1)
    for stage, steps in enumerate(halvings(16, final)):
        grid, solved = fine[:: 16 // (2 * steps)], {}
        for k in range(steps):
            t, middle, end = (torch.full((2,), grid[2 * k + j]) for j in range(3))
            target = two_step_target(predecessor, probes, t, middle, end, cond, null, 1.0 if stage else scale)
            solved[grid[2 * k]] = (target[1] - target[0]).item(), target[0].item()
        predecessor = Affine(VP, solved)
    z = noise(5)[:, :1]
    times = fine[:: 16 // final][:-1]
    found = ddim(lambda x, t: predecessor(x, t, None), z, VP, times)
    mean = scale * data  # x0 is linear in the mean, at equal deviations
    expected = z
    for t, s in pairwise(fine):
        (alpha, sigma), (alpha_s, sigma_s) = levels(VP, t), levels(VP, s)
        gain = (alpha_s * alpha * std**2 + sigma_s * sigma) / (alpha**2 * std**2 + sigma**2)
        expected = alpha_s * mean + gain * (expected - alpha * mean)
    torch.testing.assert_close(found, expected, **DOUBLE)
    one_step = teacher(z, torch.full((5,), 900), torch.full((1, 1), mean, dtype=z.dtype)).x0
    assert (found - one_step).abs().max() > 0.1  # which it does not start as


def test_loss_and_gradient_are_zero_at_the_target_and_weights_are_errors_of_other_kinds() -> None:
    value, x_t, t, target = noise(seed=1).requires_grad_(), noise(), torch.tensor([900, 600, 300, 50]), noise(seed=2)
    student = Denoiser(lambda *_: value, VP, "v")
    wanted = Prediction(x_t, target, "x0", *(broadcast(f(t), x_t) for f in (VP.alpha, VP.sigma)))
    found = student(x_t, t, None)
    errors = {kind: (getattr(found, kind) - getattr(wanted, kind)).square() for kind in ("x0", "eps", "v")}
    expected = {
        "x0": errors["x0"],
        "truncated_snr": torch.maximum(errors["x0"], errors["eps"]),
        "snr_plus_one": errors["v"],
    }
    assert expected.keys() == PROGRESSIVE_WEIGHTS.keys()
    for weight, error in expected.items():
        torch.testing.assert_close(progressive_loss(student, x_t, t, target, None, weight), error.mean())
    loss = progressive_loss(student, x_t, t, found.x0, None)
    (gradient,) = torch.autograd.grad(loss, value)
    assert loss.item() == 0 and gradient.abs().max() == 0


def test_where_there_is_no_signal_weights_are_one() -> None:
    last = torch.tensor([999])
    for weigh in PROGRESSIVE_WEIGHTS.values():
        assert weigh(ZERO_SNR.alpha(last), ZERO_SNR.sigma(last)).item() == 1


def test_the_path_is_the_samplers_and_each_sample_stops_at_its_place() -> None:
    sizes: list[int] = []

    def counted(x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        sizes.append(len(x_t))
        assert not torch.is_grad_enabled()
        return network(x_t, time) * cond

    z, grid, place = noise(6), halving_grid(999, 4), torch.tensor([2, 0, 3, 1, 3, 0])
    cond = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None]
    found = ddim_path(Denoiser(counted, VP, "v"), z, grid, cond, place)
    assert sizes == [4, 3, 2]
    model, path = Denoiser(lambda x, time, c: network(x, time) * cond, VP, "v"), [z]
    ddim(lambda x, t: model(x, t, None), z, VP, grid[:-1], callback=lambda index, t, x, prediction: path.append(x))
    for i, stop in enumerate(place.tolist()):
        torch.testing.assert_close(found[i], path[stop][i], **DOUBLE)


@pytest.mark.parametrize(("t_star", "steps"), [(999, 8), (999, 64), (847, 16), (876, 2), (7, 8)])
def test_grids_are_nested_and_end_in_data(t_star: int, steps: int) -> None:
    grid = halving_grid(t_star, steps)
    assert grid[0] == t_star and grid[-1] == -1 and len(grid) == steps + 1
    assert all(s < t for t, s in pairwise(grid))
    for k in (1, 2, 4, 8):
        if steps % k == 0 and (t_star + 1) % (steps // k) == 0:  # diffusers' times, to the integer
            assert grid[::k][:-1] == timesteps(VP.truncated(t_star), steps // k).tolist()


def test_stages() -> None:
    assert halvings(16, 4) == [8, 4] and halvings(2, 1) == [1]
    equal = [stage_at(k / 12, [1, 1, 1]) for k in range(13)]
    assert [stage for stage, _ in equal] == [0] * 4 + [1] * 4 + [2] * 5
    assert [place for _, place in equal] == pytest.approx([0, 0.25, 0.5, 0.75] * 3 + [1])
    assert [stage_at(p, [0.5, 0.25, 0.25])[0] for p in (0.49, 0.5, 0.74, 0.75, 1.0)] == [0, 1, 1, 2, 2]
    for first, last in ((8, 3), (8, 8), (12, 1), (1, 1), (8, 0), (0, 1)):
        with pytest.raises(ValueError, match=f"{first} steps halved do not come to {last}"):
            halvings(first, last)
    assert halvings(12, 3) == [6, 3]
    with pytest.raises(ValueError, match="times must descend"):
        two_step_target(Denoiser(network, VP, "v"), noise(1), *(torch.tensor([t]) for t in (9, 9, 3)), None, None, 1)
