"""Shortcut models: the two half steps of an exact flow map are its whole step."""

import pytest
import torch
from torch import Tensor
from two_time_toy import Plane, exact_average_velocity, two_times

from diffdistill.diffusion import FlowSchedule
from diffdistill.distill.flow_matching import flow_matching_loss
from diffdistill.distill.shortcut import shortcut_loss, shortcut_target, shortcut_times

FLOW = FlowSchedule()


def batch(n: int = 64, flow: float = 0.5, finest: int = 8) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 2, generator=g, dtype=torch.float64)
    u = torch.rand(4, n, generator=g, dtype=torch.float64)
    t, s = shortcut_times(u[0], u[1], u[2] < flow, u[3], finest)
    return x0, t, s, eps, torch.randint(2, (n,), generator=g)


def test_two_half_steps_of_the_exact_map_are_its_step() -> None:
    x0, t, s, eps, _ = batch(flow=0.0)
    x_t = FLOW.add_noise(x0, eps, t)
    exact = two_times(exact_average_velocity(0.7, 0.4))
    steps = shortcut_target(exact, x_t, t, s, None, finest=10**9)  # no step so small that it is asked at d = 0
    torch.testing.assert_close(steps, exact(x_t, t, s, None).flow, rtol=1e-9, atol=1e-9)


def test_half_steps_of_the_finest_size_are_asked_for_at_d_0() -> None:
    asked: list[Tensor] = []

    def network(x: Tensor, time: Tensor, earlier: Tensor, cond: object) -> Tensor:
        asked.append(time - earlier)
        return x

    x = torch.randn(3, 2, dtype=torch.float64)
    t, s = torch.tensor([0.5, 1.0, 1.0]), torch.tensor([0.25, 0.5, 0.0])  # finest 8: sizes 1/4, 1/2, 1
    made = shortcut_target(two_times(network), x, t, s, None, finest=8)
    assert [d.tolist() for d in asked] == [[0.0, 250.0, 500.0], [0.0, 250.0, 500.0]]
    half = ((t - s) / 2)[:, None]
    torch.testing.assert_close(made, (x + (x - half * x)) / 2)
    clipped = shortcut_target(two_times(network), 100 * x, t, s, None, finest=8, clip=4.0)
    expected = (100 * x + (100 * x - half * 100 * x).clamp(-4, 4)) / 2
    torch.testing.assert_close(clipped, expected.clamp(-4, 4))  # what is aimed at is clipped as well
    assert (expected.abs() > 4).any()


def test_times_are_on_the_grid_of_their_size() -> None:
    _, t, s, _, _ = batch(4000, flow=0.25, finest=16)
    assert 0.2 < (s == t).double().mean() < 0.3
    step = (t - s)[s < t]
    assert sorted(step.unique().tolist()) == [0.125, 0.25, 0.5, 1.0]
    assert torch.equal((t[s < t] / step).round() * step, t[s < t]) and (s >= 0).all() and (t <= 1).all()
    counts = torch.stack([(step == d).sum() for d in step.unique()]).double()
    assert (counts / len(step) - 0.25).abs().max() < 0.03
    with pytest.raises(ValueError, match="power of 2"):
        shortcut_times(*torch.rand(2, 3), torch.ones(3, dtype=torch.bool), torch.rand(3), finest=12)


def test_the_loss_is_flow_matching_on_some_rows_and_self_consistency_on_the_others() -> None:
    torch.manual_seed(0)
    network, target = Plane(2).double(), Plane(2).double()
    x0, t, s, eps, cond = batch()
    flow = s == t
    loss = shortcut_loss(two_times(network), x0, t, s, eps, cond, target=two_times(target), finest=8)
    x_t = FLOW.add_noise(x0, eps, t)
    steps = shortcut_target(two_times(target), x_t, t, s, cond, 8)
    value = two_times(network)(x_t, t, s, cond).flow
    expected = (value - torch.where(flow[:, None], eps - x0, steps)).square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in target.parameters())
    plain = shortcut_loss(two_times(network), x0, t, t, eps, cond)
    assert torch.equal(plain, flow_matching_loss(two_times(network), x0, t, eps, cond))


def test_the_pass_with_a_graph_is_the_first() -> None:
    network, graphs = Plane(2).double(), []

    def seen(*arguments: Tensor) -> Tensor:
        graphs.append(torch.is_grad_enabled())
        return network(*arguments)

    x0, t, s, eps, cond = batch()
    shortcut_loss(two_times(seen), x0, t, s, eps, cond, finest=8)
    assert graphs == [True, False, False]  # autocast keeps the weights that the first pass has cast
