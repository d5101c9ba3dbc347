"""Negative prompts and perp-neg: orthogonality, the closed form in two dimensions, and the passes that are run."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import (
    PREDICTION_TYPES,
    Denoiser,
    FlowSchedule,
    MixtureTeacher,
    PerpNeg,
    VPSchedule,
    combine_perp_neg,
    guided,
    perp_neg,
    perpendicular,
    predictions,
)
from diffdistill.distill import RESIDUALS, JudgingOptions, judge, score_distillation_loss

VP = VPSchedule.from_config({"beta_schedule": "linear"})
SCALE = 7.5
MEANS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 3.0, 0.0], [-1.0, 0.5, 2.0]], dtype=torch.float64)


def prompt(part: int, size: int = 5) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(part), 4).double().expand(size, 4)


def setting(kind: Any, schedule: Any = VP) -> tuple[MixtureTeacher, Tensor, Tensor]:
    stds = torch.tensor([0.3, 1.0, 0.5, 0.7])
    model = MixtureTeacher(schedule, MEANS, stds, torch.full((4,), 0.25), kind)
    x_t = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, x_t, schedule.timestep(torch.linspace(0.1, 0.9, 5, dtype=torch.float64), 0.0, 1.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_perpendicular(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    y[0] = 0
    found = perpendicular(x, y)
    assert found.dtype == dtype and torch.equal(found[0], x[0])
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    wide = found.double(), y.double()
    assert (dot(*wide)[1:].abs() / (dot(wide[0], wide[0]) * dot(wide[1], wide[1])).sqrt()[1:]).max() < near
    torch.testing.assert_close(perpendicular(x, -3 * y), found, rtol=1e-2, atol=near)  # blind to length and sign
    assert perpendicular(y, y).abs().max() < 10 * near
    torch.testing.assert_close(perpendicular(found, y), found, rtol=1e-2, atol=10 * near)  # once is enough


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_negative_prompt_moves_across_the_prompts_direction_only(kind: Any) -> None:
    model, x_t, t = setting(kind)
    plain = guided(model, x_t, t, prompt(0), prompt(1, 1), SCALE)
    away = perp_neg(model, x_t, t, prompt(0), prompt(1, 1), PerpNeg([prompt(2, 1), prompt(3)], [1.0, 0.5]), SCALE)
    cond, null, *negatives = (model(x_t, t, prompt(part)).eps for part in range(4))
    moved, towards = away.eps - plain.eps, cond - null
    assert moved.abs().max() > 0.1
    torch.testing.assert_close(dot(moved, towards), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-9)
    expected = torch.zeros_like(moved)  # by hand, in the space of noise whatever was predicted
    for weight, negative in zip((1.0, 0.5), negatives, strict=True):
        d = negative - null
        expected -= SCALE * weight * (d - (dot(d, towards) / dot(towards, towards))[:, None] * towards)
    torch.testing.assert_close(moved, expected, rtol=1e-8, atol=1e-8)


def test_an_ordinary_negative_prompt_does_weaken_the_prompt() -> None:
    """A negative that holds part of the prompt: guidance loses that part, perp-neg does not."""
    schedule = FlowSchedule()
    means = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.5, 2.0]], dtype=torch.float64)
    model = MixtureTeacher(schedule, means, torch.ones(3), torch.full((3,), 1 / 3), "x0")
    cond, null, negative = (torch.eye(3, dtype=torch.float64)[i : i + 1] for i in range(3))
    x_t, t = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)  # pure noise: x0 is the mean
    as_null = guided(model, x_t, t, cond, negative, 3.0).x0
    perp = perp_neg(model, x_t, t, cond, null, PerpNeg([negative], [1.0]), 3.0).x0
    torch.testing.assert_close(as_null, torch.tensor([[3.0, -4.0]], dtype=torch.float64))
    torch.testing.assert_close(perp, torch.tensor([[6.0, -6.0]], dtype=torch.float64))
    assert torch.equal(guided(model, x_t, t, cond, null, 3.0).x0[:, 0], perp[:, 0])


def test_what_leaves_plain_guidance_as_it_is() -> None:
    model, x_t, t = setting("v")
    plain = guided(model, x_t, t, prompt(0), prompt(1), SCALE).value
    none = torch.zeros(5, dtype=torch.float64)
    for negatives in (PerpNeg([], []), PerpNeg([prompt(2)], [0.0]), PerpNeg([prompt(2)], [none])):
        found = perp_neg(model, x_t, t, prompt(0), prompt(1), negatives, SCALE).value
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    for same in (0, 1):  # the prompt itself, or the empty one, has nothing across the prompt's direction
        found = perp_neg(model, x_t, t, prompt(0), prompt(1), PerpNeg([prompt(same)], [2.0]), SCALE).value
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)


def test_weights_and_scales_of_each_sample() -> None:
    model, x_t, t = setting("v")
    weights, scales = torch.linspace(0, 2, 5).double(), torch.linspace(0, 9, 5).double()
    both = perp_neg(model, x_t, t, prompt(0), prompt(1), PerpNeg([prompt(2)], [weights]), scales).value
    for i in range(5):
        one = PerpNeg([prompt(2, 1)], [weights[i].item()])
        row = perp_neg(model, x_t[i : i + 1], t[i : i + 1], prompt(0, 1), prompt(1, 1), one, scales[i].item()).value
        torch.testing.assert_close(both[i : i + 1], row)


@pytest.mark.parametrize("batched", [True, False])
def test_passes(batched: bool) -> None:
    seen: list[int] = []

    def network(x_t: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        seen.append(len(x_t))
        return x_t * cond["a"][:, :1]

    denoiser = Denoiser(network, VP, "v")
    x_t, t = torch.ones(3, 2), torch.tensor([1, 2, 3])
    conds = {name: {"a": torch.full((size, 4), value)} for name, size, value in (("null", 1, 2.0), ("cond", 3, 3.0))}
    conds |= {"negative 0": {"a": torch.full((1, 4), 5.0)}}
    made = predictions(denoiser, x_t, t, conds, batched)
    assert seen == ([9] if batched else [3, 3, 3])
    assert [made[name].value[0, 0].item() for name in conds] == [2.0, 3.0, 5.0]
    assert all(prediction.alpha.shape == (3, 1) for prediction in made.values())


def test_errors() -> None:
    model, x_t, t = setting("v")
    with pytest.raises(ValueError, match="1 negative prompts and 2 weights"):
        PerpNeg([prompt(2)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"cond \(5, 4\), negative 0 \(5, 3\)"):
        perp_neg(model, x_t, t, prompt(0), prompt(1), PerpNeg([prompt(2)[:, :3]], [1.0]), SCALE)
    a, b = model(x_t, t, prompt(0)), model(x_t, t, prompt(1)).as_kind("eps")
    with pytest.raises(ValueError, match="as_kind"):
        combine_perp_neg(a, a, [b], [1.0], SCALE)


def test_perp_neg_in_a_judgement() -> None:
    model, x_t, t = setting("v")
    negatives = PerpNeg([prompt(2, 1)], [1.0])
    args = (x_t, t, torch.ones_like(x_t), prompt(0), prompt(1, 1))
    for scale in (1.0, SCALE):
        plain, away = (judge("sds", model, *args, scale, options=JudgingOptions(perp_neg=n)) for n in (None, negatives))
        expected = perp_neg(model, away.x_t, t, prompt(0), prompt(1, 1), negatives, scale)
        assert torch.equal(away.read("guided").value, expected.value)
        assert not torch.equal(away.read("guided").value, plain.read("guided").value)
    asd = judge("asd", model, *args, SCALE, options=JudgingOptions(perp_neg=negatives, later_t=t))
    assert torch.equal(asd.read("later").value, asd.read("cond").value)  # the second term keeps its own prompt
    for name in (n for n, row in RESIDUALS.items() if "guided" not in row.needs):
        with pytest.raises(ValueError, match="reads no guided prediction"):
            judge(name, model, *args, SCALE, options=JudgingOptions(perp_neg=negatives))


@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["vp", "flow"])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_mixture_teacher_is_the_score_of_its_marginal(schedule: Any, kind: Any) -> None:
    model, x_t, t = setting(kind, schedule)
    x_t = x_t.requires_grad_()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).expand(5, 4)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    scale = (alpha**2 * model.stds[:, None] ** 2 + sigma**2).sqrt().expand(5, 4, 3)
    parts = torch.distributions.Independent(torch.distributions.Normal(alpha * MEANS, scale), 1)
    marginal = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts)
    (score,) = torch.autograd.grad(marginal.log_prob(x_t).sum(), x_t)
    prediction = model(x_t, t, weights)
    torch.testing.assert_close(prediction.score, score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.alpha * prediction.x0 + prediction.sigma * prediction.eps, x_t)


def test_mixture_teacher_answers_on_the_device_it_is_asked_on() -> None:
    model, x_t, t = setting("v")
    prediction = model(x_t.to("meta"), t.to("meta"), None)
    assert prediction.value.device.type == prediction.x0.device.type == "meta"


def test_samples_of_a_mixture_have_its_moments() -> None:
    model, _, _ = setting("v")
    weights = torch.tensor([0.0, 0.0, 0.75, 0.25], dtype=torch.float64)
    x = model.sample(40_000, torch.Generator().manual_seed(0), weights)
    mean = weights @ MEANS
    second = weights @ (MEANS.square() + model.stds[:, None] ** 2)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.04)
    torch.testing.assert_close(x.square().mean(0), second, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale: float) -> None:
    model, x_t, t = setting("eps")
    says = f"the guidance scale is {scale}; it must be a finite number"
    with pytest.raises(ValueError, match=says):
        guided(model, x_t, t, prompt(0), prompt(1), scale)
    args = (model, x_t, t, torch.ones_like(x_t), prompt(0), prompt(1))
    with pytest.raises(ValueError, match=says):
        score_distillation_loss("vsd", "sigma2", *args, scale, fake=model)
    with pytest.raises(ValueError, match=says):
        score_distillation_loss("vsd", "sigma2", *args, 2.0, fake=model, fake_guidance_scale=scale)
