"""Value, mean and variance over the noise of every row, for exact Gaussian teachers; and identities of the new rows.

For data N(mu, v^2) and x_t = alpha x + sigma eps the exact noise prediction is g + k eps, with

    g = alpha sigma (x - mu) / (alpha^2 v^2 + sigma^2),    k = sigma^2 / (alpha^2 v^2 + sigma^2)

so every residual that reads random noise is mean + slope eps, of variance slope^2. All prompts are parts of one
`MixtureTeacher`, chosen by their weights.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import FlowSchedule, MixtureTeacher, VPSchedule, guided
from diffdistill.distill import RESIDUALS, WEIGHTS, Inversion, JudgingOptions, ddim_invert, judge

SCHEDULES = [VPSchedule.from_config({"beta_schedule": "linear"}), FlowSchedule()]
IDS = ["vp", "flow"]
PARTS = ("cond", "null", "negative", "fake")
MEAN = torch.tensor([[1.5, 0.5], [-0.5, 0.0], [0.3, -2.0], [0.2, 0.4]], dtype=torch.float64)
STD = torch.tensor([0.3, 0.8, 1.2, 0.5], dtype=torch.float64)
POINT = torch.tensor([0.9, -0.7], dtype=torch.float64)
SCALE = 4.0
DRAWS = 40_000
RANDOM = [name for name, row in RESIDUALS.items() if row.inversion is None]


def prompt(name: str, size: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(PARTS.index(name)), 4).double().expand(size, 4)


class Fixed:
    """The mixture with one prompt, whatever it is asked: the fake score."""

    def __init__(self, model: MixtureTeacher, name: str) -> None:
        self.model, self.name, self.schedule = model, name, model.schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Any:
        return self.model(x_t, t, prompt(self.name, len(x_t)))


def teacher(schedule: Any, kind: Any = "v") -> MixtureTeacher:
    return MixtureTeacher(schedule, MEAN, STD, torch.full((4,), 0.25), kind)


def judged(name: str, schedule: Any, u: float, eps: Tensor, scale: float = SCALE, **more: Any) -> tuple[Tensor, Any]:
    """The residual at POINT under B noises."""
    size, model = len(eps), teacher(schedule)
    t = schedule.timestep(torch.full((size,), u, dtype=torch.float64), 0.0, 1.0)
    options: dict[str, Any] = {
        "later_t": later(schedule, t),
        "earlier_t": earlier(schedule, t),
        "negative": prompt("negative", 1),
    } | more
    args = (POINT.expand(size, 2), t, eps, prompt("cond", size), prompt("null", 1), scale)
    fake = options.pop("fake", Fixed(model, "fake"))
    judgement = judge(name, model, *args, fake=fake, options=JudgingOptions(**options))
    return RESIDUALS[name].assemble(judgement), judgement


def later(schedule: Any, t: Tensor) -> Tensor:
    return schedule.later(t, torch.full_like(t, 0.8, dtype=torch.float64), 0.3, 0.02)


def earlier(schedule: Any, t: Tensor) -> Tensor:
    return t - (20 if isinstance(schedule, VPSchedule) else 0.02)


def line(schedule: Any, name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """(g, k) of one prompt at one time of shape ()."""
    part = PARTS.index(name)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = alpha**2 * STD[part] ** 2 + sigma**2
    return alpha * sigma * (POINT - MEAN[part]) / variance, sigma**2 / variance


def expected(name: str, schedule: Any, t: Tensor, small: bool) -> tuple[Tensor, Tensor]:
    """Mean and slope of the residual."""
    (g_c, k_c), (g_0, k_0) = line(schedule, "cond", t), line(schedule, "null", t)
    g_s, k_s = g_0 + SCALE * (g_c - g_0), k_0 + SCALE * (k_c - k_0)
    if name == "sds":
        return g_s, k_s - 1
    if name == "sjc" or (name == "nfsd" and small):
        return g_s, k_s
    if name == "csd":
        return g_c - g_0, k_c - k_0
    other = {"nfsd": "negative", "vsd": "fake", "asd": "cond"}[name]
    g, k = line(schedule, other, later(schedule, t) if name == "asd" else t)
    return g_s - g, k_s - k


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b.to(a.dtype).expand_as(a), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("u", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_value_mean_and_variance_over_the_noise(schedule: Any, u: float, name: str) -> None:
    eps = torch.randn(DRAWS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residual, judgement = judged(name, schedule, u, eps)
    mean, slope = expected(name, schedule, judgement.t[0], small=u < 0.2)
    close(residual, mean + slope * eps)
    deviation = slope.abs().item()
    assert (residual.mean(0) - mean).abs().max().item() < 5 * deviation / DRAWS**0.5 + 1e-9
    assert residual.var(0).tolist() == pytest.approx([deviation**2] * 2, rel=0.04)  # 5 standard errors


@pytest.mark.parametrize("u", [0.3, 0.8])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_independent_noise_multiplies_the_variance_of_asd(schedule: Any, u: float) -> None:
    """Shared noise: (K - k')^2, independent: K^2 + k'^2, for slopes K of the guided and k' of the later term."""
    first, second = torch.randn(2, DRAWS, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shared, judgement = judged("asd", schedule, u, first, scale=1.0)
    t = judgement.t
    x_later = schedule.add_noise(POINT.expand(DRAWS, 2), second, later(schedule, t))
    other = teacher(schedule)(x_later, later(schedule, t), prompt("cond", DRAWS)).eps
    independent = judgement.read("guided").eps - other
    k, k_later = line(schedule, "cond", t[0])[1], line(schedule, "cond", later(schedule, t)[0])[1]
    factor = ((k**2 + k_later**2) / (k - k_later) ** 2).item()
    assert factor > 20
    assert (independent.var(0) / shared.var(0)).tolist() == pytest.approx([factor] * 2, rel=0.06)
    close(independent.mean(0), shared.mean(0), 0.05)  # the mean is the same: noise is all that it adds


@pytest.mark.parametrize("name", ["ism", "sdi"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_inversion_by_hand_and_no_variance(schedule: Any, name: str) -> None:
    """The chain of affine maps, written out; the noise given is not read."""
    eps = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    residual, judgement = judged(name, schedule, 0.5, eps)
    assert bool((residual == residual[:1]).all())
    t, plan = judgement.t[0], RESIDUALS[name].inversion
    assert plan is not None

    def noise(x: Tensor, at: Tensor, scale: float) -> Tensor:
        alpha, sigma = schedule.alpha(at), schedule.sigma(at)
        cond, null = (sigma * (x - alpha * MEAN[i]) / (alpha**2 * STD[i] ** 2 + sigma**2) for i in (0, 1))
        return null + scale * (cond - null)

    def step(x: Tensor, now: Tensor, after: Tensor, scale: float) -> Tensor:
        e = noise(x, now, scale)
        ratio = schedule.alpha(after) / schedule.alpha(now)
        return ratio * (x - schedule.sigma(now) * e) + schedule.sigma(after) * e

    end = earlier(schedule, t) if name == "ism" else t
    grid = [end * k / plan.steps for k in range(plan.steps + 1)]
    if isinstance(schedule, VPSchedule):
        grid = [at.round().long() for at in grid]
    x = POINT
    for now, after in zip(grid, grid[1:], strict=False):
        x = step(x, now, after, plan.guidance_scale)
    if name == "ism":
        other, x = noise(x, end, 0.0), step(x, end, t, 0.0)
    else:
        other = (x - schedule.alpha(t) * POINT) / schedule.sigma(t)
    close(judgement.x_t, x)
    close(judgement.x_t, schedule.alpha(t) * POINT + schedule.sigma(t) * judgement.eps)
    close(residual, noise(x, t, SCALE) - other)


@pytest.mark.parametrize("name", ["sdi", "ism"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_both_columns_of_the_weights_agree_along_an_inversion(schedule: Any, name: str) -> None:
    """So LucidDreamer's weight sigma / alpha on noises is the weight x0, and SDI's loss on x0 is too."""
    _, judgement = judged(name, schedule, 0.5, torch.zeros(2, 2, dtype=torch.float64))
    row = RESIDUALS[name]
    clean = WEIGHTS["x0"].gradient(row, judgement)
    close(clean, judgement.sigma / judgement.alpha * row.assemble(judgement))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_inversion_converges_to_the_flow_of_the_gaussian(schedule: Any) -> None:
    """The probability flow ODE keeps (x_t - alpha mu) / sqrt(alpha^2 v^2 + sigma^2); errors fall as 1 / steps."""
    model = teacher(schedule)
    t = schedule.timestep(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), 0.0, 1.0)
    x0, zero = POINT.expand(3, 2), torch.zeros(3, dtype=t.dtype)

    def deviation(at: Tensor) -> Tensor:
        return (schedule.alpha(at) ** 2 * STD[0] ** 2 + schedule.sigma(at) ** 2).sqrt()[:, None]

    exact = schedule.alpha(t)[:, None] * MEAN[0] + deviation(t) / deviation(zero) * (
        x0 - schedule.alpha(zero)[:, None] * MEAN[0]
    )
    errors = []
    for steps in (50, 100, 200):
        found = ddim_invert(lambda x, at: model(x, at, prompt("cond", 3)), x0, schedule, t, steps)
        errors.append((found - exact).abs().max().item())
    assert errors[2] < 0.1  # four deviations out, where the first steps are the coarse ones
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1) == errors[1] / errors[2]


def test_sdi_pulls_to_the_mode_without_noise() -> None:
    """In the limit of many steps, unguided, d = (x - mu)(1 - alpha v / sqrt(alpha^2 v^2 + sigma^2)): always inward."""
    schedule = FlowSchedule()
    plan = Inversion(steps=400, guidance_scale=1.0)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    _, judgement = judged("sdi", schedule, 0.6, zero, scale=1.0, inversion=plan)
    alpha, sigma = judgement.alpha, judgement.sigma
    share = 1 - alpha * STD[0] / (alpha**2 * STD[0] ** 2 + sigma**2).sqrt()
    close(RESIDUALS["sdi"].assemble_x0(judgement), share * (POINT - MEAN[0]), 0.01)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_ism_over_no_interval_is_csd_at_the_inverted_point(schedule: Any) -> None:
    zero = torch.zeros(2, 2, dtype=torch.float64)
    t = schedule.timestep(torch.full((2,), 0.5, dtype=torch.float64), 0.0, 1.0)
    ism, judgement = judged("ism", schedule, 0.5, zero, earlier_t=t)
    csd, other = judged("csd", schedule, 0.5, judgement.eps)
    close(other.x_t, judgement.x_t)
    close(ism, SCALE * csd)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_nfsd_between_csd_and_sjc(schedule: Any) -> None:
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    csd, _ = judged("csd", schedule, 0.5, eps)
    empty, _ = judged("nfsd", schedule, 0.5, eps, negative=prompt("null", 1))
    wanted, _ = judged("nfsd", schedule, 0.5, eps, negative=prompt("cond", 1))
    close(empty, SCALE * csd)
    close(wanted, (SCALE - 1) * csd)
    for u, rule, other in ((0.19, 0.2, "sjc"), (0.5, 1.0, "sjc"), (0.21, 0.2, None), (0.05, 0.0, None)):
        found, judgement = judged("nfsd", schedule, u, eps, small_t=rule)
        guided_noise = judgement.read("guided").eps
        same = judged("sjc", schedule, u, eps)[0] if other else guided_noise - judgement.read("negative").eps
        close(found, same)


@pytest.mark.parametrize("weight", ["uniform", "sigma2", "alpha_sigma2", "x0", "dmd", "prd"])
@pytest.mark.parametrize("name", ["sds", "sjc", "nfsd"])
def test_x0_space_points_the_same_way(name: str, weight: str) -> None:
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for u in (0.1, 0.6):
        noise, judgement = judged(name, SCHEDULES[0], u, eps)
        grad = WEIGHTS[weight].gradient(RESIDUALS[name], judgement)
        factor = grad / noise
        assert bool((factor > 0).all())
        close(factor, factor[:, :1], 1e-6)


def test_the_variance_reduced_form_of_sjc_is_sds() -> None:
    """-(D(x + s n) - x) / s with s = sigma / alpha and D the clean sample predicted at the perturbed point."""
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for schedule in SCHEDULES:
        sds, judgement = judged("sds", schedule, 0.6, eps)
        ratio = judgement.sigma / judgement.alpha
        clean = judgement.read("guided").x0
        close(sds, -(clean - POINT) / ratio)
        sjc, _ = judged("sjc", schedule, 0.6, eps)
        close(sjc, -(clean - (POINT + ratio * eps)) / ratio)


@pytest.mark.parametrize("weight", list(WEIGHTS))
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_no_gradient_where_the_fake_score_is_the_teacher(weight: str, kind: Any) -> None:
    """Of a mixture, under every weight, bit for bit."""
    schedule = SCHEDULES[0]
    x0, eps = torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(6))
    model = MixtureTeacher(schedule, MEAN, STD, torch.tensor([0.4, 0.3, 0.2, 0.1]), kind)
    t = schedule.timestep(torch.linspace(0, 0.99, 16, dtype=torch.float64), 0.02, 0.98)
    judgement = judge("vsd", model, x0, t, eps, None, None, 1.0, fake=model)
    grad = WEIGHTS[weight].gradient(RESIDUALS["vsd"], judgement)
    assert bool((grad == 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_dmd_from_scores(schedule: Any) -> None:
    """w alpha (s_fake - s_real) with w = sigma^2 / (alpha mean|x0 - x0_g|) is alpha times the weight `dmd`."""
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    residual, j = judged("vsd", schedule, 0.4, eps)
    error = (j.x0 - j.read("guided").x0).abs().mean(1, keepdim=True)
    scores = j.read("fake").score - j.read("guided").score
    dmd = WEIGHTS["dmd"].gradient(RESIDUALS["vsd"], j)
    close(j.sigma**2 / error * scores, j.alpha * dmd)
    close(dmd, j.sigma / j.alpha / error * residual)


def test_noise_during_an_inversion() -> None:
    """One step of noise from time s to t has the deviation that DDPM would add from t to s."""
    schedule = SCHEDULES[0]
    model, size = teacher(schedule), 20_000
    x0, t = POINT.expand(size, 2), torch.full((size,), 400)
    z = torch.randn(2, size, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    z[0] = 0.0

    def predict(x: Tensor, at: Tensor) -> Any:
        return guided(model, x, at, prompt("cond", size), prompt("null", 1), 0.0)

    still = ddim_invert(predict, x0, schedule, t, 2)
    moved = ddim_invert(predict, x0, schedule, t, 2, 0.3, z) - still
    ratio = schedule.alphas_cumprod[400] / schedule.alphas_cumprod[200]
    beta = (1 - schedule.alphas_cumprod[200]) / (1 - schedule.alphas_cumprod[400]) * (1 - ratio)
    close(moved / z[1], 0.3 * beta.sqrt())
    with pytest.raises(ValueError, match=r"\(2, 20000, 2\)"):
        ddim_invert(predict, x0, schedule, t, 2, 0.3)


@pytest.mark.parametrize(
    ("name", "missing", "match"),
    [
        ("nfsd", "negative", "negative="),
        ("ism", "earlier_t", "earlier_t="),
        ("asd", "later_t", "later_t="),
        ("vsd", "fake", "pass fake="),
    ],
)
def test_what_a_row_lacks_is_named(name: str, missing: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        judged(name, SCHEDULES[0], 0.5, torch.zeros(1, 2, dtype=torch.float64), **{missing: None})
    with pytest.raises(ValueError, match="at least 1 and 0"):
        Inversion(steps=0, guidance_scale=0.0)
