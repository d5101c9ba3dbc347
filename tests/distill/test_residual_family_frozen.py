"""Arithmetic that may not change: a rewrite of the family keeps these gradients bit for bit, float32 and bfloat16."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import Denoiser, Prediction, VPSchedule
from diffdistill.distill import JudgingOptions, SampleRandom, score_distillation_loss

SCHEDULE = VPSchedule.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


def network(x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
    """Element by element, so that a sample's result does not depend on the batch around it."""
    return x * cond[:, :1, :1].to(x.dtype) + time.to(x.dtype).view(-1, 1, 1) / 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("scale", [1.0, 4.5])
@pytest.mark.parametrize("residual", ["vsd", "sds", "csd", "asd"])
def test_swiftbrush_step_bit_for_bit(residual: str, scale: float, kind: Any, dtype: torch.dtype) -> None:
    random = SampleRandom(0, range(6))
    x0 = random.normal("x0", (4, 4), dtype).requires_grad_()
    eps, cond, null = random.normal("eps", (4, 4), dtype), random.normal("cond", (2, 3)), torch.full((1, 2, 3), 0.25)
    t = SCHEDULE.timestep(random.uniform("t"), 0.02, 0.981)
    later_t = SCHEDULE.later(t, random.uniform("later"), 0.1, 0.02)

    def other(x: Tensor, time: Tensor, c: Tensor) -> Tensor:
        return network(x, time, c) * 0.75

    loss, logs = score_distillation_loss(
        residual,
        "sigma2",
        Denoiser(network, SCHEDULE, kind),
        x0,
        t,
        eps,
        cond,
        null,
        scale,
        fake=Denoiser(other, SCHEDULE, kind),
        fake_guidance_scale=scale,
        options=JudgingOptions(later_t=later_t),
    )
    (found,) = torch.autograd.grad(loss, x0)

    # the same, written out: no call of the package but the schedule's levels and the reading of noise
    def levels(at: Tensor) -> tuple[Tensor, Tensor]:
        return SCHEDULE.alpha(at).view(-1, 1, 1), SCHEDULE.sigma(at).view(-1, 1, 1)

    def noisy(at: Tensor) -> Tensor:
        alpha, sigma = (level.float() for level in levels(at))
        return (alpha * x0.detach().float() + sigma * eps.float()).to(dtype)

    def noise(value: Tensor, at: Tensor) -> Tensor:
        return Prediction(noisy(at), value, kind, *levels(at)).eps

    def guided(net: Any) -> Tensor:
        c, n = net(noisy(t), t, cond), net(noisy(t), t, null.expand(6, 2, 3))
        return noise(c if scale == 1 else n + scale * (c - n), t)

    if residual == "vsd":
        r = guided(network) - guided(other)
    elif residual == "sds":
        r = guided(network) - eps
    elif residual == "csd":
        r = noise(network(noisy(t), t, cond), t) - noise(network(noisy(t), t, null.expand(6, 2, 3)), t)
    else:
        r = guided(network) - noise(network(noisy(later_t), later_t, cond), later_t)
    grad = r * levels(t)[1].square().to(dtype)
    again = x0.detach().requires_grad_()
    by_hand = (0.5 * (again - again.detach() + grad).square()).mean()
    (expected,) = torch.autograd.grad(by_hand, again)
    assert torch.equal(loss, by_hand) and torch.equal(found, expected)
    assert torch.equal(logs["grad_rms"], grad.float().flatten(1).square().mean(1).sqrt().mean())
