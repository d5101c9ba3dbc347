"""Gradients of the family against closed forms for Gaussian teachers, and identities that hold for any
network.

For data N(mu, v^2) the exact noise prediction is linear in x_t: e(x_t) = k (x_t - alpha mu), with
k = sigma / (alpha^2 v^2 + sigma^2). So its mean over the noise is its value at eps = 0, and its standard
deviation that at eps = 1 minus that.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import FlowSchedule, PredictionType, VPSchedule
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import JudgingOptions, judge, score_distillation_loss, surrogate_loss

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
SCHEDULES = [("vp", VPSchedule.from_config(STABLE_DIFFUSION)), ("flow", FlowSchedule())]
SCALE = 7.5
STD = {"cond": 0.3, "null": 0.8, "fake": 0.5}
MEAN = {"cond": 1.5, "null": -0.5, "fake": 0.2}


class TwoGaussians:
    """A teacher whose conditional and unconditional distributions differ in mean and in deviation."""

    def __init__(self, schedule: Any, kind: PredictionType) -> None:
        self.schedule = schedule
        self.parts = {name: GaussianTeacher(schedule, MEAN[name], STD[name], kind) for name in ("cond", "null")}
        self.seen: list[tuple[Tensor, Tensor, Any]] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any) -> Any:
        """cond is a tensor of shape (B, 1) of ones (the prompt) or zeros (the empty prompt)."""
        self.seen.append((x_t, t, cond))
        prompt, empty = (self.parts[name](x_t, t, None) for name in ("cond", "null"))
        rows = cond.bool().view(-1, *[1] * (x_t.dim() - 1))
        value = torch.where(rows, prompt.value, empty.value)
        return type(prompt)(x_t, value, prompt.kind, prompt.alpha, prompt.sigma)


def batch(schedule: Any, size: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    u = torch.linspace(0.05, 0.95, size, dtype=torch.float64)
    return {
        "x0": torch.randn(size, 2, 3, generator=generator, dtype=torch.float64),
        "eps": torch.randn(size, 2, 3, generator=generator, dtype=torch.float64),
        "t": schedule.timestep(u, 0.02, 0.98),
        "cond": torch.ones(size, 1),
        "null": torch.zeros(size, 1),
    }


def closed_form(schedule: Any, b: dict[str, Any], name: str, t: Tensor, eps: Tensor | float) -> Tensor:
    alpha, sigma = schedule.alpha(t).view(-1, 1, 1), schedule.sigma(t).view(-1, 1, 1)
    x_t = alpha * b["x0"] + sigma * eps
    return sigma * (x_t - alpha * MEAN[name]) / (alpha**2 * STD[name] ** 2 + sigma**2)


def gradient(residual: str, teacher: Any, b: dict[str, Any], weight: str = "uniform", **options: Any) -> Tensor:
    """dL/dx0 with the batch reduction, times B: the weighted residual itself."""
    x0 = b["x0"].clone().requires_grad_()
    scale = options.pop("guidance_scale", SCALE)
    args = (x0, b["t"], b["eps"], b["cond"], b["null"], scale)
    if "later_t" in options:
        options["options"] = JudgingOptions(later_t=options.pop("later_t"))
    loss, _ = score_distillation_loss(residual, weight, teacher, *args, reduction="batch", **options)
    (grad,) = torch.autograd.grad(loss, x0)
    return grad * len(x0)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("schedule", [s for _, s in SCHEDULES], ids=[n for n, _ in SCHEDULES])
class TestClosedForms:
    def test_sds(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        cond, null = (closed_form(schedule, b, name, b["t"], b["eps"]) for name in ("cond", "null"))
        close(gradient("sds", TwoGaussians(schedule, kind), b), null + SCALE * (cond - null) - b["eps"])

    def test_csd(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        cond, null = (closed_form(schedule, b, name, b["t"], b["eps"]) for name in ("cond", "null"))
        close(gradient("csd", TwoGaussians(schedule, kind), b), cond - null)

    def test_vsd(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        cond, null, fake = (closed_form(schedule, b, name, b["t"], b["eps"]) for name in MEAN)
        fake_score = GaussianTeacher(schedule, MEAN["fake"], STD["fake"], kind)
        grad = gradient("vsd", TwoGaussians(schedule, kind), b, fake=fake_score)
        close(grad, null + SCALE * (cond - null) - fake)

    def test_asd(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        later_t = schedule.later(b["t"], torch.full_like(b["t"], 0.7, dtype=torch.float64), 0.1, 0.02)
        assert bool((later_t >= b["t"]).all()) and bool((later_t > b["t"]).any())
        cond, null = (closed_form(schedule, b, name, b["t"], b["eps"]) for name in ("cond", "null"))
        later = closed_form(schedule, b, "cond", later_t, b["eps"])
        grad = gradient("asd", TwoGaussians(schedule, kind), b, later_t=later_t)
        close(grad, null + SCALE * (cond - null) - later)

    def test_mean_over_the_noise(self, schedule: Any, kind: PredictionType) -> None:
        """E[residual] in terms of g(t, v) = alpha sigma / (alpha^2 v^2 + sigma^2)."""
        b = batch(schedule)
        later_t = schedule.later(b["t"], torch.full_like(b["t"], 0.7, dtype=torch.float64), 0.1, 0.02)

        def push(name: str, t: Tensor) -> Tensor:
            alpha, sigma = schedule.alpha(t).view(-1, 1, 1), schedule.sigma(t).view(-1, 1, 1)
            return alpha * sigma / (alpha**2 * STD[name] ** 2 + sigma**2) * (b["x0"] - MEAN[name])

        expected_sds = (1 - SCALE) * push("null", b["t"]) + SCALE * push("cond", b["t"])
        teacher = TwoGaussians(schedule, kind)
        both_signs = [{**b, "eps": sign * b["eps"]} for sign in (1, -1)]
        for name, expected, options in [
            ("sds", expected_sds, {}),
            ("csd", push("cond", b["t"]) - push("null", b["t"]), {}),
            ("asd", expected_sds - push("cond", later_t), {"later_t": later_t}),
        ]:
            both = torch.stack([gradient(name, teacher, signed, **options) for signed in both_signs])
            close(both.mean(0), expected)

    def test_asd_without_a_shift_is_csd(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        teacher = TwoGaussians(schedule, kind)
        still = schedule.later(b["t"], torch.full_like(b["t"], 0.7, dtype=torch.float64), 0.0, 0.02)
        asd = gradient("asd", teacher, b, later_t=still)
        assert sum(len(x_t) for x_t, _, _ in teacher.seen) == 2 * len(b["x0"])  # none at t + dt
        close(asd, (SCALE - 1) * gradient("csd", teacher, b))

    def test_vsd_with_the_score_of_the_sample_is_sds(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        teacher = TwoGaussians(schedule, kind)
        sample = GaussianTeacher(schedule, b["x0"], 0.0, kind)
        close(gradient("vsd", teacher, b, fake=sample), gradient("sds", teacher, b))

    def test_vsd_vanishes_where_the_fake_is_the_teacher(self, schedule: Any, kind: PredictionType) -> None:
        b = batch(schedule)
        teacher = TwoGaussians(schedule, kind)
        both_guided = gradient("vsd", teacher, b, fake=teacher, fake_guidance_scale=SCALE)
        assert bool((both_guided == 0).all())
        teacher_guided = gradient("vsd", teacher, b, fake=teacher)
        close(teacher_guided, (SCALE - 1) * gradient("csd", teacher, b))


def test_equal_variances_leave_csd_without_a_restoring_force() -> None:
    schedule = SCHEDULES[0][1]

    class Shifted(TwoGaussians):
        def __init__(self) -> None:
            super().__init__(schedule, "eps")
            self.parts = {name: GaussianTeacher(schedule, MEAN[name], 0.4, "eps") for name in ("cond", "null")}

    b = batch(schedule)
    moved = {**b, "x0": b["x0"] + 3.0}
    close(gradient("csd", Shifted(), b), gradient("csd", Shifted(), moved))
    assert bool((gradient("sds", Shifted(), moved) > gradient("sds", Shifted(), b)).all())


def test_shared_noise_makes_asd_quieter_than_sds() -> None:
    """At t = 300 with v = 0.5 and scale 1 the deviation over the noise is 0.265 for SDS, far less for ASD."""
    schedule = SCHEDULES[0][1]
    teacher = GaussianTeacher(schedule, 0.0, 0.5, "eps")
    t, later_t = torch.tensor([300]), torch.tensor([328])
    zero, one = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (0.0, 1.0))

    def deviation(residual: str, **options: Any) -> float:
        b = {"x0": zero, "eps": one, "t": t, "cond": None, "null": None}
        return abs(gradient(residual, teacher, b, guidance_scale=1.0, **options).item())  # zero at eps = 0

    def slope(at: Tensor) -> float:
        alpha, sigma = schedule.alpha(at).item(), schedule.sigma(at).item()
        return sigma**2 / (alpha**2 * 0.25 + sigma**2)

    assert deviation("sds") == pytest.approx(1 - slope(t), rel=1e-9) == pytest.approx(0.265, abs=5e-4)
    assert deviation("asd", later_t=later_t) == pytest.approx(slope(later_t) - slope(t), rel=1e-9)
    assert deviation("asd", later_t=later_t) < 0.2 * deviation("sds")
    independent = (slope(t) ** 2 + slope(later_t) ** 2) ** 0.5
    assert independent > 20 * deviation("asd", later_t=later_t)


def test_both_terms_of_asd_see_one_sample_and_one_noise() -> None:
    schedule = SCHEDULES[0][1]
    b = batch(schedule)
    later_t = b["t"] + 7
    teacher = TwoGaussians(schedule, "eps")
    judge(
        "asd", teacher, b["x0"], b["t"], b["eps"], b["cond"], b["null"], SCALE, options=JudgingOptions(later_t=later_t)
    )
    x_later, t, cond = teacher.seen[-1]
    close(x_later, schedule.add_noise(b["x0"], b["eps"], later_t))
    assert torch.equal(t, later_t) and torch.equal(cond, b["cond"])


@pytest.mark.parametrize(
    ("residual", "scale", "rows"),
    [
        ("sds", 1.0, 1), ("sds", 3.0, 2), ("sjc", 3.0, 2), ("csd", 1.0, 2), ("vsd", 1.0, 1), ("asd", 1.0, 2),
        ("asd", 3.0, 3), ("nfsd", 3.0, 3), ("ism", 3.0, 6), ("sdi", 3.0, 22),
    ],
)  # fmt: skip
def test_only_the_passes_that_a_row_reads_are_run(residual: str, scale: float, rows: int) -> None:
    schedule = SCHEDULES[1][1]
    b = batch(schedule)
    teacher = TwoGaussians(schedule, "flow")
    fake = GaussianTeacher(schedule, 0.0, 1.0, "flow")
    args = (b["x0"], b["t"], b["eps"], b["cond"], b["null"], scale)
    options = JudgingOptions(later_t=b["t"] * 1.02, earlier_t=b["t"] * 0.9, negative=b["null"])
    judge(residual, teacher, *args, fake=fake, options=options)
    assert sum(len(x_t) for x_t, _, _ in teacher.seen) == rows * len(b["x0"])


def test_no_gradient_enters_the_teacher_and_one_reaches_the_generator() -> None:
    schedule = SCHEDULES[0][1]
    b = batch(schedule)
    mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    teacher = GaussianTeacher(schedule, mean, 0.5, "eps")
    args = (b["x0"] + shift, b["t"], b["eps"], None, None, 1.0)
    loss, logs = score_distillation_loss("sds", "sigma2", teacher, *args)
    loss.backward()
    assert mean.grad is None and shift.grad is not None
    assert not any(value.requires_grad or value.dim() for value in logs.values())


@pytest.mark.parametrize("residual", ["sds", "vsd"])
def test_what_is_logged_does_not_depend_on_how_the_batch_is_cut(residual: str) -> None:
    """Means over micro-batches and processes, which a log holds, are those of the batch, of the loss too."""
    schedule = SCHEDULES[0][1]
    b = batch(schedule, 6)
    teacher, fake = TwoGaussians(schedule, "v"), GaussianTeacher(schedule, 0.2, 0.5, "v")

    def values(rows: slice) -> dict[str, Tensor]:
        args = (b["x0"][rows], b["t"][rows], b["eps"][rows], b["cond"][rows], b["null"][rows], SCALE)
        loss, logs = score_distillation_loss(residual, "sigma2", teacher, *args, fake=fake)
        return {"loss": loss, **logs}

    whole, halves = values(slice(6)), [values(slice(3)), values(slice(3, 6))]
    assert set(whole) == {"loss", "grad_rms", "residual_rms", "teacher_error"}
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(half[name].item() for half in halves) / 2, rel=1e-6), name


def test_a_guidance_scale_for_each_sample() -> None:
    schedule = SCHEDULES[1][1]
    b = batch(schedule)
    teacher = TwoGaussians(schedule, "flow")
    scales = torch.tensor([0.0, 1.0, 2.0, 7.5, 20.0], dtype=torch.float64)
    together = gradient("sds", teacher, b, guidance_scale=scales)
    for row, scale in enumerate(scales.tolist()):
        close(together[row], gradient("sds", teacher, b, guidance_scale=scale)[row])


def test_errors_say_what_is_missing() -> None:
    schedule = SCHEDULES[0][1]
    b = batch(schedule)
    teacher = TwoGaussians(schedule, "eps")
    args = (b["x0"], b["t"], b["eps"], b["cond"], b["null"], SCALE)
    with pytest.raises(ValueError, match="Did you mean 'vsd'"):
        judge("vds", teacher, *args)
    with pytest.raises(ValueError, match="pass fake="):
        judge("vsd", teacher, *args)
    with pytest.raises(ValueError, match="later_t"):
        judge("asd", teacher, *args)
    with pytest.raises(ValueError, match="one time per sample"):
        judge("sds", teacher, b["x0"], b["t"][:1], *args[2:])
    with pytest.raises(ValueError, match="must be equal"):
        judge("sds", teacher, b["x0"], b["t"], b["eps"][:, :1], *args[3:])


def test_surrogate_gradients() -> None:
    x0 = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 4, 2, dtype=torch.float64)
    mean, summed = surrogate_loss(x0, grad), surrogate_loss(x0, grad, "batch")
    close(torch.autograd.grad(mean, x0)[0], grad / 24)
    close(torch.autograd.grad(summed, x0)[0], grad / 3)
    close(mean.detach(), (0.5 * (x0 - (x0 - grad)).square()).mean().detach())
    close(summed.detach(), mean.detach() * 8)
    with pytest.raises(ValueError, match="reduction"):
        surrogate_loss(x0, grad, "sum")


def test_surrogate_keeps_a_gradient_that_the_sample_would_swallow() -> None:
    x0 = torch.full((2, 2), 100.0, dtype=torch.bfloat16, requires_grad=True)
    tiny = torch.full((2, 2), 1e-4, dtype=torch.bfloat16)
    assert torch.equal(x0 - tiny, x0)  # the textbook form would see no gradient at all
    (grad,) = torch.autograd.grad(surrogate_loss(x0, tiny, "batch") * 2, x0)
    torch.testing.assert_close(grad, tiny)
