"""f-divergences: h(r) against its definition, and the weighted gradient against the divergence of two Gaussians."""

import math
from collections.abc import Callable

import pytest
import torch

from diffdistill.diffusion import GaussianTeacher, VPSchedule
from diffdistill.distill import DIVERGENCES, divergence_weights, score_distillation_loss

F: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # D_f(p || q) = E_q f(p / q)
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "hellinger": lambda r: -4 * r.sqrt(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "softened_reverse_kl": lambda r: (r + 1) * ((r + 1) / r).log(),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_is_the_second_derivative_times_r_squared(name: str) -> None:
    r = torch.linspace(0.2, 5, 25, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(F[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(DIVERGENCES[name](r), r.square() * second)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_weighted_difference_of_scores_is_the_divergences_gradient(name: str) -> None:
    """p is N(0, 1) and q is N(m, s^2), whose samples are m + s z; integrals are sums over a fine grid."""
    z = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.7, 1.3))

    def log_ratio(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return -x.square() / 2 + ((x - mean) / std).square() / 2 + std.log()

    divergence = (density * F[name](log_ratio(m + s * z, m, s).exp())).sum()
    wanted = torch.autograd.grad(divergence, (m, s))
    with torch.no_grad():
        x = m + s * z
        h = DIVERGENCES[name](log_ratio(x, m, s).exp())
        push = h * (-(x - m) / s.square() + x)  # score of q minus score of p
        found = (density * push).sum(), (density * push * z).sum()  # dx/dm = 1 and dx/ds = z
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_weights_are_of_each_sample_alone_and_clamp_the_ratio() -> None:
    logits = torch.tensor([[-50.0], [0.0], [50.0]])
    torch.testing.assert_close(divergence_weights(logits, "reverse_kl"), torch.ones(3))
    torch.testing.assert_close(divergence_weights(logits, "forward_kl"), torch.tensor([0.1, 1.0, 10.0]))
    whole = divergence_weights(logits[:, 0], "jensen_shannon")
    torch.testing.assert_close(whole, torch.tensor([2 * 0.1 / 1.1, 1.0, 2 * 10 / 11]))
    torch.testing.assert_close(whole[1:2], divergence_weights(logits[1], "jensen_shannon"))
    with pytest.raises(ValueError, match="unknown divergence 'forwrd_kl'.*forward_kl"):
        divergence_weights(logits, "forwrd_kl")
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        divergence_weights(torch.zeros(2, 2), "forward_kl")


def test_sample_weights_multiply_the_gradient_of_each_sample() -> None:
    schedule = VPSchedule.from_config({"beta_schedule": "linear"})
    teacher = GaussianTeacher(schedule, torch.zeros(2), torch.ones(2), "v")
    x0 = torch.randn(3, 2, requires_grad=True)
    t, eps = torch.tensor([100, 500, 900]), torch.randn(3, 2)
    weights = torch.tensor([0.5, 2.0, 1.0])

    def gradient(**more: torch.Tensor) -> torch.Tensor:
        loss, _ = score_distillation_loss("sds", "sigma2", teacher, x0, t, eps, None, None, 1.0, **more)
        return torch.autograd.grad(loss, x0)[0]

    torch.testing.assert_close(gradient(sample_weights=weights), weights[:, None] * gradient())
    with pytest.raises(ValueError, match="one for each sample"):
        gradient(sample_weights=weights[:2])
