"""Self-E's loss against the paper's formulas written out, flow matching at s = t, and what happens at t = 1."""

from typing import Any

import pytest
import torch
from torch import Tensor
from two_time_toy import Plane, two_times

from diffdistill.diffusion import FlowSchedule, GaussianTeacher
from diffdistill.diffusion.any_step import TwoTimeDenoiser
from diffdistill.distill import denoising_loss
from diffdistill.distill.flow_matching import flow_matching_loss, logit_normal_times
from diffdistill.distill.self_evaluation import (
    earlier_times,
    fake_branch_loss,
    scaled_to,
    self_evaluation_loss,
    self_share,
)

FLOW = FlowSchedule()
NULL = torch.tensor([2])


def batch(n: int = 16, same: float = 0.5) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x0, eps, noise = torch.randn(3, n, 2, generator=g)
    t = torch.rand(n, generator=g, dtype=torch.float64) * 0.9 + 0.05
    s = earlier_times(t, torch.rand(n, generator=g), 1.0, torch.rand(n, generator=g) < same)
    return x0, t, s, eps, noise, torch.randint(2, (n,), generator=g)


def judge(means: dict[int, float], std: float) -> TwoTimeDenoiser:
    """The exact judge of Gaussians, one a class; its network tells the class's mean by the condition."""

    def network(x: Tensor, time: Tensor, earlier: Tensor, cond: Tensor) -> Tensor:
        mean = torch.tensor([means[int(c)] for c in cond], dtype=torch.float64)[:, None]
        return GaussianTeacher(FLOW, mean, std, "flow")(x, time.double() / 1000, None).value

    return TwoTimeDenoiser(network, FLOW)


def test_the_share_is_lambda_over_one_plus_lambda() -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for s in (0.0 * t, 0.3 * t, 0.99 * t):
        lam = t / (1 - t) - s / (1 - s)
        torch.testing.assert_close(self_share(t, s), lam / (1 + lam))
    assert (self_share(t, t) == 0).all()
    ends = self_share(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1 - 1e-12], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0.0, 1.0, 0.0, 1.0])


def test_scaling_keeps_the_norm_and_the_direction() -> None:
    x, like = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[2] = 0
    made = scaled_to(x, like)
    keep = [0, 1, 3, 4]
    torch.testing.assert_close(made.flatten(1).norm(dim=1)[keep], like.flatten(1).norm(dim=1)[keep])
    cosine = torch.nn.functional.cosine_similarity(made.flatten(1), x.flatten(1))
    torch.testing.assert_close(cosine[keep], torch.ones(4, dtype=torch.float64))
    assert (made[2] == 0).all()
    assert torch.equal(scaled_to(like, like), like)


def test_where_s_is_t_it_is_flow_matching_to_the_bit() -> None:
    torch.manual_seed(0)
    network, other = Plane(3), Plane(3)
    x0, t, _, eps, noise, cond = batch()
    results = []
    for loss in (
        self_evaluation_loss(two_times(network), x0, t, t, eps, noise, cond, NULL, two_times(other))[0],
        flow_matching_loss(two_times(network), x0, t, eps, cond),
        denoising_loss(two_times(network).instantaneous, x0, t, eps, cond, "flow"),
    ):
        results.append((loss.detach(), torch.autograd.grad(loss, list(network.parameters()))))
    for loss, gradients in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


@pytest.mark.parametrize("energy_preserving", [True, False])
@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("w", [1.0, 10.0])
def test_the_loss_is_the_papers(fake: bool, energy_preserving: bool, w: float) -> None:
    """Targets from the formulas as they stand, judges from Gaussian closed forms, at mixed s = t and s < t.

    At share .9 and scale 10 the fake branch's delta is 9 (null - c) + (fake - c): the reverse KL's at guidance 10.
    """
    torch.manual_seed(0)
    network = Plane(4).double()
    x0, t, s, eps, noise, cond = (a.double() if a.is_floating_point() else a for a in batch())
    fake_cond = torch.full_like(cond, 3) if fake else None
    ema = judge({0: 1.0, 1: -1.0}, 0.4)
    live = judge({2: 0.2, 3: 0.5}, 0.9)
    loss, judged = self_evaluation_loss(
        two_times(network), x0, t, s, eps, noise, cond, NULL, ema, live, fake_cond, 0.9, energy_preserving, w
    )
    column = (-1, 1)
    tc, sc = t.view(column), s.view(column)
    x_t = (1 - tc) * x0 + tc * eps
    x0_hat = x_t - tc * network(x_t, (1000 * t).double(), (1000 * s).double(), cond)
    x_s = ((1 - sc) * x0_hat + sc * noise).detach()
    by_ema = GaussianTeacher(FLOW, torch.where(cond == 0, 1.0, -1.0)[:, None], 0.4)(x_s, s, None).x0
    delta = GaussianTeacher(FLOW, 0.2, 0.9)(x_s, s, None).x0 - by_ema
    if fake:
        by_fake = GaussianTeacher(FLOW, 0.5, 0.9)(x_s, s, None).x0
        delta = 0.9 * delta + 0.1 * (by_fake - by_ema) if w == 1 else 9 * delta + (by_fake - by_ema)
    else:
        delta = w * delta
    lam = tc / (1 - tc) - sc / (1 - sc)
    x_self = (x0_hat - delta).detach()
    target = (x0 + lam * x_self) / (1 + lam)
    if energy_preserving:
        target = target / target.norm(dim=1, keepdim=True) * x0.norm(dim=1, keepdim=True)
    expected = ((x0_hat - target) ** 2 / tc**2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(a, list(network.parameters())) for a in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    assert torch.equal(judged.rows, (s < t).nonzero()[:, 0])
    torch.testing.assert_close(judged.delta, delta[judged.rows].detach())


def test_judges_get_no_gradient_and_only_earlier_rows_are_judged() -> None:
    torch.manual_seed(0)
    network, evaluator, live = Plane(3), Plane(3), Plane(3)
    sizes: list[int] = []

    def counted(x: Tensor, time: Tensor, earlier: Tensor, cond: Tensor) -> Tensor:
        assert torch.equal(time, earlier)
        sizes.append(len(x))
        return evaluator(x, time, earlier, cond)

    x0, t, s, eps, noise, cond = batch()
    loss, _ = self_evaluation_loss(
        two_times(network), x0, t, s, eps, noise, cond, NULL, two_times(counted), two_times(live)
    )
    loss.backward()
    assert sizes == [int((s < t).sum())] and 0 < sizes[0] < 16
    assert all(p.grad is None for judge in (evaluator, live) for p in judge.parameters())
    assert any(p.grad.abs().max() > 0 for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("t", [1 - 1e-6, 1 - 1e-12, 1.0, 1e-3])
@pytest.mark.parametrize("share", [0.0, 0.5, 1 - 1e-7])
def test_at_the_ends_everything_is_finite(t: float, share: float) -> None:
    torch.manual_seed(0)
    network = Plane(3)
    x0, _, _, eps, noise, cond = batch()
    times = torch.full((16,), t, dtype=torch.float64)
    loss, _ = self_evaluation_loss(
        two_times(network), x0, times, share * times, eps, noise, cond, NULL, two_times(Plane(3))
    )
    loss.backward()
    assert loss < 1e3 and all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_the_fake_branch_is_flow_matching_on_what_was_generated() -> None:
    torch.manual_seed(0)
    network = Plane(4)
    x0, t, s, eps, noise, cond = batch()
    fake = torch.full_like(cond, 3)
    _, judged = self_evaluation_loss(
        two_times(network), x0, t, s, eps, noise, cond, NULL, two_times(Plane(4)), fake_cond=fake
    )
    found = fake_branch_loss(two_times(network), judged, fake)
    rows = s < t
    x_hat = two_times(network)(FLOW.add_noise(x0, eps, t), t, s, cond).x0[rows].detach()
    expected = flow_matching_loss(two_times(network), x_hat, s[rows], noise[rows], fake[rows])
    torch.testing.assert_close(found, expected * rows.double().mean().float())  # of the whole batch
    _, none = self_evaluation_loss(two_times(network), x0, t, t, eps, noise, cond, NULL, two_times(Plane(4)))
    assert fake_branch_loss(two_times(network), none, fake).item() == 0


def test_times_are_drawn_as_the_paper_has_them() -> None:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(20000, generator=g, dtype=torch.float64)
    raw, mu = torch.sigmoid(normal), torch.tensor(1.15, dtype=torch.float64)
    warped = mu.exp() / (mu.exp() + 1 / raw - 1)
    torch.testing.assert_close(logit_normal_times(normal, 1.15), warped)
    t, u = warped, torch.rand(20000, generator=g, dtype=torch.float64)
    never = torch.zeros(20000, dtype=torch.bool)
    s = earlier_times(t, u, 0.4, never)
    assert ((s <= t) & (s >= 0.6 * t)).all()
    assert abs((s / t).mean().item() - 0.8) < 0.005
    assert torch.equal(earlier_times(t, u, 0.0, never), t) and torch.equal(earlier_times(t, u, 0.7, ~never), t)


def test_conditions_may_be_mappings() -> None:
    x0, t, s, eps, noise, cond = batch()
    torch.manual_seed(0)
    network = Plane(3)

    def named(x: Tensor, time: Tensor, earlier: Tensor, cond: Any) -> Tensor:
        return network(x, time, earlier, cond["class"])

    plain = self_evaluation_loss(two_times(network), x0, t, s, eps, noise, cond, NULL, two_times(network))[0]
    mapped = self_evaluation_loss(
        two_times(named), x0, t, s, eps, noise, {"class": cond}, {"class": NULL}, two_times(named)
    )[0]
    assert torch.equal(plain, mapped)


def test_bad_input_is_named() -> None:
    x0, t, s, eps, noise, cond = batch()
    d = two_times(Plane(3))
    with pytest.raises(ValueError, match="must not be later"):
        self_evaluation_loss(d, x0, s, t + 0.01, eps, noise, cond, NULL, d)
    with pytest.raises(ValueError, match="must be equal"):
        self_evaluation_loss(d, x0, t, s, eps[:, :1], noise, cond, NULL, d)
    with pytest.raises(ValueError, match="one time per sample"):
        flow_matching_loss(d, x0, t[:3], eps, cond)
