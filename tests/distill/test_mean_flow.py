"""The MeanFlow identity on an exact flow map, derivatives against each other, and the adaptive weight."""

import pytest
import torch
from torch import Tensor
from two_time_toy import Plane, exact_average_velocity, two_times

from diffdistill.diffusion import FlowSchedule, GaussianTeacher
from diffdistill.distill.flow_matching import flow_matching_loss
from diffdistill.distill.mean_flow import guided_velocity, mean_flow_loss, mean_flow_times, total_derivative

FLOW = FlowSchedule()
MEAN, STD = 0.7, 0.4


def batch(n: int = 16) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 2, generator=g, dtype=torch.float64)
    a, b = torch.rand(2, n, generator=g, dtype=torch.float64) * 0.9 + 0.05
    t, r = mean_flow_times(a, b, torch.rand(n, generator=g) < 0.3)
    return x0, t, r, eps, torch.randint(2, (n,), generator=g)


@pytest.mark.parametrize(("derivative", "tolerance"), [("jvp", 1e-20), ("difference", 1e-8)])
def test_the_exact_average_velocity_solves_the_identity(derivative, tolerance: float) -> None:
    x0, t, r, eps, _ = batch()
    exact = two_times(exact_average_velocity(MEAN, STD))
    v = GaussianTeacher(FLOW, MEAN, STD, "flow")(FLOW.add_noise(x0, eps, t), t, None).flow  # the field's own velocity
    loss, logs = mean_flow_loss(exact, x0, t, r, eps, None, velocity=v, derivative=derivative, power=0.0)
    assert loss < tolerance and logs["error"] < tolerance
    wrong = two_times(lambda x, time, earlier, c: exact_average_velocity(MEAN, STD)(x, time, time, c))
    assert mean_flow_loss(wrong, x0, t, r, eps, None, velocity=v, power=0.0)[0] > 1e-2


@pytest.mark.parametrize("t_first", [False, True])
def test_jvp_and_differences_agree_on_a_network_and_at_the_ends_of_time(t_first: bool) -> None:
    torch.manual_seed(0)
    network = Plane(3).double()
    x0, t, r, eps, cond = batch()
    t = torch.ones_like(t) if t_first else t

    def u(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return two_times(network)(x, a, b, cond).flow

    exact = total_derivative(u, x0, t, r, eps)
    errors = [(total_derivative(u, x0, t, r, eps, "difference", h) - exact)[r < t].norm() for h in (2e-2, 1e-2)]
    ratio = (errors[0] / errors[1]).item()
    assert errors[1] < 0.05 * exact.norm()
    assert ratio == pytest.approx(2 if t_first else 4, rel=0.15)  # one-sided at t = 1, central elsewhere
    if not t_first:  # no network's value is read outside [r, 1], and r = t stays finite
        assert total_derivative(u, x0, t, t, eps, "difference").isfinite().all()


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_under_autocast_the_target_is_in_full_precision(derivative) -> None:
    torch.manual_seed(0)
    network, layers = Plane(3), []

    def seen(*arguments: Tensor) -> Tensor:
        layers.append(network.layers[0](torch.zeros(1, 17)).dtype)
        return network(*arguments)

    x0, t, r, eps, cond = (a.float() if a.is_floating_point() else a for a in batch())

    def u(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return two_times(seen)(x, a, b, cond).flow

    plain = total_derivative(u, x0, t.double(), r.double(), eps, derivative)
    guided = guided_velocity(two_times(network), x0, t.double(), eps, cond, cond * 0 + 2, 1.5, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        lower = total_derivative(u, x0, t.double(), r.double(), eps, derivative)
        guided_lower = guided_velocity(two_times(network), x0, t.double(), eps, cond, cond * 0 + 2, 1.5, 0.2)
        layers.clear()
        mean_flow_loss(two_times(seen), x0, t.double(), r.double(), eps, cond, derivative=derivative)[0].backward()
    assert torch.equal(lower, plain) and torch.equal(guided_lower, guided)
    assert torch.bfloat16 in layers and torch.float32 in layers  # the pass that is trained is autocast's
    assert all(p.grad is not None for p in network.parameters())


def test_where_r_is_t_it_is_flow_matching() -> None:
    torch.manual_seed(0)
    network = Plane(3).double()
    x0, t, _, eps, cond = batch()
    parameters = list(network.parameters())
    ours, _ = mean_flow_loss(two_times(network), x0, t, t, eps, cond, power=0.0)
    theirs = 2 * flow_matching_loss(two_times(network), x0, t, eps, cond)  # a sum over the plane's two values
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=0)
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_target_has_no_gradient_and_the_weight_is_the_papers() -> None:
    torch.manual_seed(0)
    network = Plane(3).double()
    x0, t, r, eps, cond = batch()
    parameters = list(network.parameters())
    loss, _ = mean_flow_loss(two_times(network), x0, t, r, eps, cond, power=1.0, weight_eps=1e-3)
    x_t = FLOW.add_noise(x0, eps, t)
    v = eps - x0

    def u(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return two_times(network)(x, a, b, cond).flow

    target = (v - (t - r)[:, None] * total_derivative(u, x_t, t, r, v)).detach()
    error = (u(x_t, t, r) - target).square().sum(1)
    expected = (error / (error.detach() + 1e-3)).mean()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(*(torch.autograd.grad(each, parameters) for each in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_guided_velocity_is_that_of_the_guided_field() -> None:
    x0, t, _, eps, _ = batch()
    x_t = FLOW.add_noise(x0, eps, t)
    cond, null = torch.ones(16, 1, dtype=torch.float64), -torch.ones(16, 1, dtype=torch.float64)

    def network(x: Tensor, time: Tensor, earlier: Tensor, mean: Tensor) -> Tensor:
        return exact_average_velocity(mean, STD)(x, time, earlier, None)

    v_c, v_0 = (GaussianTeacher(FLOW, mean, STD, "flow")(x_t, t, None).flow for mean in (1.0, -1.0))
    made = guided_velocity(two_times(network), x_t, t, v_c, cond, null, omega=1.5, kappa=0.5)
    torch.testing.assert_close(made, v_0 + 2.0 * (v_c - v_0))  # kappa's share is the model's own: here v_c as well
    plain = guided_velocity(two_times(network), x_t, t, v_c, cond, null, omega=3.0)
    torch.testing.assert_close(plain, v_0 + 3.0 * (v_c - v_0))


def test_times_are_in_order() -> None:
    _, t, r, _, _ = batch(1000)
    assert (r <= t).all() and 0.25 < (r == t).double().mean() < 0.35


def test_an_unknown_derivative_is_named() -> None:
    x0, t, r, eps, cond = batch()
    with pytest.raises(ValueError, match="exact"):
        mean_flow_loss(two_times(Plane(3).double()), x0, t, r, eps, cond, derivative="exact")  # type: ignore[arg-type]
