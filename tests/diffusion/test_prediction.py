"""Every kind of prediction read from every other, against the definitions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import (
    PREDICTION_TYPES,
    FlowSchedule,
    Prediction,
    VPSchedule,
    broadcast,
    combine,
    from_diffusers_prediction_type,
)

SCHEDULES = [VPSchedule.from_config({"beta_schedule": "linear"}), FlowSchedule()]


def truth(schedule: Any, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What each kind is at five times, by definition; x_t is among them."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = schedule.timestep(torch.linspace(0.02, 0.95, 5, dtype=torch.float64), 0.0, 1.0)
    alpha, sigma = broadcast(schedule.alpha(t), x0), broadcast(schedule.sigma(t), x0)
    kinds = {
        "x_t": alpha * x0 + sigma * eps,
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "flow": eps - x0,
        "score": -eps / sigma,
    }
    return {name: value.to(dtype) for name, value in kinds.items()}, alpha, sigma


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_kind_from_every_other(schedule: Any, kind: Any) -> None:
    kinds, alpha, sigma = truth(schedule)
    prediction = Prediction(kinds["x_t"], kinds[kind], kind, alpha, sigma)
    assert getattr(prediction, kind) is prediction.value
    for name in (*PREDICTION_TYPES, "score"):
        # at the noisiest of these times 1 / alpha is 100, at the cleanest 1 / sigma is 50
        scale = kinds[name].abs().max().item() * max(1.0, (1 / alpha).max().item(), (1 / sigma).max().item())
        torch.testing.assert_close(getattr(prediction, name), kinds[name], rtol=0, atol=1e-14 * scale)
    for name in PREDICTION_TYPES:
        again = prediction.as_kind(name).as_kind(kind)
        assert prediction.as_kind(name).kind == name and again.kind == kind
        torch.testing.assert_close(again.value, kinds[kind], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_network_precision(schedule: Any, kind: Any) -> None:
    exact, alpha, sigma = truth(schedule)
    kinds, _, _ = truth(schedule, torch.float32)
    prediction = Prediction(kinds["x_t"], kinds[kind].bfloat16(), kind, alpha, sigma)
    assert getattr(prediction, kind).dtype == torch.bfloat16
    for name in set(PREDICTION_TYPES) - {kind}:
        assert getattr(prediction, name).dtype == torch.float32
    single = Prediction(kinds["x_t"], kinds[kind], kind, alpha, sigma)
    gain = max((1 / alpha).max().item(), (1 / sigma).max().item())
    for name in PREDICTION_TYPES:
        torch.testing.assert_close(getattr(single, name).double(), exact[name], rtol=0, atol=1e-6 * gain)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("kind", ["v", "flow"])
def test_v_and_flow_are_read_at_both_ends(alpha: float, sigma: float, kind: Any) -> None:
    x0, eps = torch.full((1, 2), 3.0).double(), torch.full((1, 2), -2.0).double()
    value = {"v": alpha * eps - sigma * x0, "flow": eps - x0}[kind]
    levels = (torch.full((1, 1), level).double() for level in (alpha, sigma))
    prediction = Prediction(alpha * x0 + sigma * eps, value, kind, *levels)
    assert torch.equal(prediction.x0, x0) and torch.equal(prediction.eps, eps)


def test_combine_is_the_same_in_every_kind() -> None:
    for schedule in SCHEDULES:
        kinds, alpha, sigma = truth(schedule)
        null = Prediction(kinds["x_t"], kinds["v"], "v", alpha, sigma)
        cond = Prediction(kinds["x_t"], kinds["v"].roll(1), "v", alpha, sigma)
        guided = combine(null, cond, 7.5)
        assert guided.kind == "v"
        torch.testing.assert_close(guided.eps, null.eps + 7.5 * (cond.eps - null.eps), rtol=1e-9, atol=1e-9)
        one_each = combine(null, cond, torch.tensor([0.0, 1.0, 2.0, 3.0, 7.5]))
        torch.testing.assert_close(one_each.value[4], guided.value[4])
        torch.testing.assert_close(one_each.value[1], cond.value[1])
        assert torch.equal(one_each.value[0], null.value[0])
        with pytest.raises(ValueError, match="as_kind"):
            combine(null, cond.as_kind("eps"), 2.0)


def test_gradient_and_detach() -> None:
    kinds, alpha, sigma = truth(SCHEDULES[0])
    value = kinds["eps"].requires_grad_()
    prediction = Prediction(kinds["x_t"], value, "eps", alpha, sigma)
    (grad,) = torch.autograd.grad(prediction.x0.sum(), value)
    torch.testing.assert_close(grad, (-sigma / alpha).expand_as(grad))
    assert not prediction.detach().x0.requires_grad


def test_names_of_diffusers() -> None:
    names = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
    assert {name: from_diffusers_prediction_type(name) for name in names} == names
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample, flow_prediction"):
        from_diffusers_prediction_type("eps")
    one = torch.ones(1)
    with pytest.raises(ValueError, match="x0, eps, v, flow"):
        Prediction(one, one, "epsilon", one, one)  # type: ignore[arg-type]
