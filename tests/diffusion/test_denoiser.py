"""What a network gets, how its output is read, how guidance runs it, and the exact Gaussian."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import (
    PREDICTION_TYPES,
    Denoiser,
    FlowSchedule,
    GaussianTeacher,
    GuidedDenoiser,
    PerpNeg,
    ScoreModel,
    VPSchedule,
    broadcast,
    cond_and_null,
    guided,
    perp_neg,
)

VP = VPSchedule.from_config({"beta_schedule": "linear"})
T = torch.tensor([3, 500, 990])


class Linear:
    """A network that returns x_t + the mean of its condition, and records its arguments."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.seen: list[tuple[Tensor, Tensor, Any]] = []

    def __call__(self, x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        self.seen.append((x_t, time, cond))
        tokens = cond["tokens"] if isinstance(cond, dict) else cond
        return (x_t + tokens.mean((1, 2)).view(-1, 1, 1)).to(self.dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, 4), (3, 5, 6), (1, 5, 6))
    x_t, cond, null = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x_t.to(dtype), cond, null


def test_a_network_gets_its_own_time() -> None:
    x_t, cond, _ = batch(torch.float32)
    network = Linear()
    Denoiser(network, VP, "eps")(x_t, T, cond)
    Denoiser(network, FlowSchedule(), "flow")(x_t.bfloat16(), torch.tensor([0.0, 0.9991, 1.0]).double(), cond)
    Denoiser(network, VP, "eps")(x_t, torch.tensor(7), cond)
    times = [time for _, time, _ in network.seen]
    assert torch.equal(times[0], T)
    assert times[1].dtype == torch.float32 and times[1].tolist() == pytest.approx([0.0, 999.1, 1000.0])
    assert times[2].tolist() == [7, 7, 7]


def test_low_precision_output_is_cast() -> None:
    x_t, cond, _ = batch(torch.float32)
    prediction = Denoiser(Linear(torch.bfloat16), VP, "v")(x_t, T, cond)
    assert prediction.value.dtype == prediction.x0.dtype == torch.float32
    assert prediction.alpha.shape == (3, 1, 1) and prediction.alpha.dtype == torch.float64


def test_denoiser_errors() -> None:
    x_t, cond, _ = batch()
    with pytest.raises(ValueError, match="x0, eps, v, flow"):
        Denoiser(Linear(), VP, "epsilon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="t has shape"):
        Denoiser(Linear(), VP, "eps")(x_t, T[:2], cond)
    with pytest.raises(ValueError, match="the network returned"):
        Denoiser(lambda x_t, time, cond: x_t[:, :1], VP, "eps")(x_t, T, cond)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_guidance(as_dict: bool, batched: bool) -> None:
    x_t, cond, null = batch()
    mean_cond, mean_null = cond.mean((1, 2)).view(3, 1, 1), null.mean().view(1, 1, 1)
    conditions: tuple[Any, Any] = ({"tokens": cond}, {"tokens": null}) if as_dict else (cond, null)

    def run(scale: float | Tensor) -> tuple[Tensor, list[int]]:
        network = Linear()
        value = guided(Denoiser(network, VP, "v"), x_t, T, *conditions, scale, batched=batched).value
        return value, [len(seen) for seen, _, _ in network.seen]

    value, passes = run(1.0)
    assert torch.equal(value, x_t + mean_cond) and passes == [3]
    value, passes = run(0.0)
    torch.testing.assert_close(value, x_t + mean_null)
    assert passes == [3]
    value, passes = run(7.5)
    torch.testing.assert_close(value, x_t + mean_null + 7.5 * (mean_cond - mean_null))
    assert passes == ([6] if batched else [3, 3])
    torch.testing.assert_close(run(torch.full((3,), 7.5))[0], value)


def test_one_batch_is_two_passes() -> None:
    x_t, cond, null = batch()
    denoiser = Denoiser(Linear(), VP, "eps")
    for together, apart in zip(
        cond_and_null(denoiser, x_t, T, cond, null),
        cond_and_null(denoiser, x_t, T, cond, null, batched=False),
        strict=True,
    ):
        assert together.x_t is x_t and together.alpha.shape == (3, 1, 1)
        torch.testing.assert_close(together.x0, apart.x0)


def test_conditions_that_do_not_match() -> None:
    x_t, cond, null = batch()
    denoiser = Denoiser(Linear(), VP, "eps")
    for bad, match in [
        (null[:, :2], r"null \(3, 2, 6\), cond \(3, 5, 6\)"),
        (None, "null is None, cond is a tensor"),
        ({"tokens": null}, "null is a mapping with the parts tokens"),
    ]:
        with pytest.raises(ValueError, match=match):
            cond_and_null(denoiser, x_t, T, cond, bad)
    with pytest.raises(ValueError, match="parts"):
        cond_and_null(denoiser, x_t, T, {"tokens": cond}, {"pooled": null})


@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["vp", "flow"])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_gaussian_teacher_is_the_score_of_its_marginal(schedule: Any, kind: Any) -> None:
    x_t = torch.linspace(-3, 3, 6, dtype=torch.float64).view(3, 2).requires_grad_()
    t = schedule.timestep(torch.tensor([0.1, 0.5, 0.9]).double(), 0.0, 1.0)
    prediction = GaussianTeacher(schedule, 1.5, 0.3, kind)(x_t, t, None)
    alpha, sigma = broadcast(schedule.alpha(t), x_t), broadcast(schedule.sigma(t), x_t)
    marginal = torch.distributions.Normal(1.5 * alpha, (0.09 * alpha**2 + sigma**2).sqrt())
    (score,) = torch.autograd.grad(marginal.log_prob(x_t).sum(), x_t)
    torch.testing.assert_close(prediction.score, score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t)


def test_gaussian_teacher_of_one_sample_and_of_a_condition() -> None:
    x0, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for schedule, t in ((VP, T), (FlowSchedule(), torch.tensor([0.0, 0.5, 1.0]))):
        one = GaussianTeacher(schedule, lambda cond: 2 * cond, 0.0, "flow")
        prediction = one(schedule.add_noise(x0, eps, t), t, x0 / 2)
        torch.testing.assert_close(prediction.x0, x0)
        torch.testing.assert_close(prediction.eps[1:], eps[1:])
        assert bool(prediction.value.isfinite().all())
    half = GaussianTeacher(VP, 0.0, 1.0)(x0.bfloat16(), T, None)
    assert half.value.dtype == torch.bfloat16 and half.kind == "eps"


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 4), (3, 1, 5), (1, 4), (1, 1, 5)])
def test_a_time_per_token_or_pixel_is_that_of_each(shape: tuple[int, ...]) -> None:
    """A network that acts on each element alone predicts there what it predicts for a sample of that time."""
    schedule = FlowSchedule()
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    t = torch.rand(shape, generator=generator, dtype=torch.float64)
    times: list[tuple[int, ...]] = []

    def network(x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        times.append(tuple(time.shape))
        return (x * broadcast(cond, x)).tanh() + broadcast(time, x) / 1000

    denoiser = Denoiser(network, schedule, "v")
    cond, null = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([-1.0])
    plain, both = denoiser(x_t, t, cond), guided(denoiser, x_t, t, cond, null, 3.0)
    rows = (3, *shape[1:])
    assert times == [rows, (6, *rows[1:])]
    left = t.reshape(*shape, *[1] * (3 - len(shape))).expand(3, 4, 5)  # dimensions match from the first one on
    for at in ((0, 0, 0), (1, 3, 2), (2, 1, 4)):
        alone = x_t[at].view(1, 1)
        one = (alone, left[at].view(1), cond[at[0]].view(1))
        assert plain.x0[at].item() == pytest.approx(denoiser(*one).x0.item(), rel=1e-12)
        assert both.x0[at].item() == pytest.approx(guided(denoiser, *one, null, 3.0).x0.item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(2,), (3, 5), (3, 4, 1, 1), (4,), (1, 5)])
def test_times_that_do_not_broadcast_are_refused(shape: tuple[int, ...]) -> None:
    denoiser = Denoiser(lambda x_t, time, cond: x_t, FlowSchedule(), "v")
    for scale in (1.0, 2.0):
        with pytest.raises(ValueError, match="t has shape"):
            guided(denoiser, torch.zeros(3, 4, 5), torch.zeros(shape), torch.ones(3), torch.ones(1), scale)


def test_a_guided_denoiser_is_a_score_model() -> None:
    x_t, cond, null = batch()
    denoiser = Denoiser(Linear(), VP, "v")
    bound: ScoreModel = GuidedDenoiser(denoiser, null, 7.5)
    assert bound.schedule is VP
    assert torch.equal(bound(x_t, T, cond).value, guided(denoiser, x_t, T, cond, null, 7.5).value)
    twice = GuidedDenoiser(GuidedDenoiser(denoiser, null, 3.0), null, 1.0)  # guided models may be guided
    assert torch.equal(twice(x_t, T, cond).value, guided(denoiser, x_t, T, cond, null, 3.0).value)
    negatives = PerpNeg([null + 1], [0.5])
    with_negatives = GuidedDenoiser(denoiser, null, 7.5, negatives)(x_t, T, cond)
    assert torch.equal(with_negatives.value, perp_neg(denoiser, x_t, T, cond, null, negatives, 7.5).value)
