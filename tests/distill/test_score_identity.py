"""SiD's loss: Gaussian closed forms, finite differences through real networks, and a student that finds its teacher.

For scalar Gaussians, teacher N(m_T, v^2) and student N(m, s^2) with an exact fake score, f_T - f_F and f_F - x0 are
affine in (z, eps). Squares and products of such have the same mean over z, eps in {-1, 1} as over standard normals.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffdistill.diffusion import Denoiser, FlowSchedule, PredictionType, Schedule, VPSchedule
from diffdistill.diffusion.gaussian import GaussianTeacher
from diffdistill.distill import SampleRandom, denoising_loss, score_distillation_loss
from diffdistill.distill.score_identity import on_the_sample, score_identity_loss

VP = VPSchedule.from_config(
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
)
SCHEDULES = [VP, FlowSchedule()]
MEAN, STD = 1.5, 0.6


def signs(at: float, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """z, eps and t of four samples whose second moments are those of standard normals."""
    z, eps = (torch.tensor(v, dtype=torch.float64) for v in zip(*itertools.product((-1, 1), repeat=2), strict=True))
    return z.view(4, 1), eps.view(4, 1), schedule.timestep(torch.full((4,), at), 0.02, 0.98)


def levels(schedule: Schedule, t: Tensor) -> tuple[float, float]:
    return schedule.alpha(t[:1]).item(), schedule.sigma(t[:1]).item()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_its_expected_value_is_one_minus_alpha_times_the_gap(schedule: Schedule, at: float, alpha: float) -> None:
    z, eps, t = signs(at, schedule)
    a, sigma = levels(schedule, t)
    m, s = -0.4, 0.9
    teacher, fake = GaussianTeacher(schedule, MEAN, STD, "v"), GaussianTeacher(schedule, m, s, "v")
    loss, logs = score_identity_loss(teacher, fake, m + s * z, t, eps, None, None, alpha=alpha, normalise=False)
    # f_T - f_F = d + (k_T - k_F) (x_t - a m), k = a v^2 / var(x_t), and d its value at the student's own mean
    var_teacher, var_fake = a**2 * STD**2 + sigma**2, a**2 * s**2 + sigma**2
    d = (MEAN - m) * sigma**2 / var_teacher
    slope = a * STD**2 / var_teacher - a * s**2 / var_fake
    gap = d**2 + slope**2 * var_fake
    assert loss.item() == pytest.approx((1 - alpha) * gap, rel=1e-9, abs=1e-12)
    gaps = d + slope * (a * s * z + sigma * eps)  # one number a sample
    assert logs["gap_rms"].item() == pytest.approx(gaps.abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_value_and_gradient_are_zero_where_the_fake_score_is_the_teacher(schedule: Schedule, alpha: float) -> None:
    z, eps, t = signs(0.4, schedule)
    x0 = (3 * z).requires_grad_()  # samples of whatever distribution
    teacher = GaussianTeacher(schedule, MEAN, STD, "v")
    loss, _ = score_identity_loss(teacher, teacher, x0, t, eps, None, None, alpha=alpha)
    (gradient,) = torch.autograd.grad(loss, x0)
    assert loss.item() == 0 and not gradient.any()


def test_below_one_the_value_is_least_where_student_and_teacher_agree() -> None:
    z, eps, t = signs(0.5, VP)
    teacher = GaussianTeacher(VP, MEAN, STD, "v")

    def value(m: float, s: float) -> float:
        fake = GaussianTeacher(VP, m, s, "v")
        args = (m + s * z, t, eps, None, None)
        return score_identity_loss(teacher, fake, *args, alpha=0.5, normalise=False)[0].item()

    assert value(MEAN, STD) == pytest.approx(0, abs=1e-15)
    around = [value(MEAN + dm, STD + ds) for dm, ds in itertools.product((-0.1, 0, 0.1), repeat=2) if dm or ds]
    assert min(around) > 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_the_gradient_leads_to_the_teachers_mean_whatever_alpha(alpha: float) -> None:
    z, eps, t = signs(0.5, VP)
    a, sigma = levels(VP, t)
    m = -0.4
    x0 = (m + STD * z).requires_grad_()
    teacher, fake = GaussianTeacher(VP, MEAN, STD, "v"), GaussianTeacher(VP, m, STD, "v")
    loss, _ = score_identity_loss(teacher, fake, x0, t, eps, None, None, alpha=alpha, normalise=False)
    (gradient,) = torch.autograd.grad(loss * 4, x0)
    c = sigma**2 / (a**2 * STD**2 + sigma**2)
    torch.testing.assert_close(gradient, torch.full_like(gradient, -(c**2) * (MEAN - m)))


class TinyNetwork(nn.Module):
    """Not linear in anything, and smooth."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        return self.layers(torch.cat([x_t, time.double().view(-1, 1) / 1000, cond], 1))


def tiny(schedule: Schedule, kind: PredictionType) -> tuple[dict[str, Any], tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = schedule.timestep(torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64), 0.02, 0.98)
    cond, null = torch.ones(4, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    models = {"teacher": Denoiser(TinyNetwork(1), schedule, kind), "fake": Denoiser(TinyNetwork(2), schedule, kind)}
    return models, (x0, t, eps, cond, null)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow"])
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_gradient_against_finite_differences(schedule: Schedule, kind: PredictionType, alpha: float) -> None:
    models, (x0, *rest) = tiny(schedule, kind)

    def loss(x0: Tensor) -> Tensor:
        options = {"guidance_scale": 2.0, "fake_guidance_scale": 1.5, "alpha": alpha, "normalise": False}
        return score_identity_loss(*models.values(), x0, *rest, **options)[0]

    assert torch.autograd.gradcheck(loss, x0.clone().requires_grad_(), eps=1e-6, atol=1e-7)


def test_the_normaliser_is_one_constant_a_sample() -> None:
    models, (x0, *rest) = tiny(VP, "v")
    x0.requires_grad_()
    gradients = {}
    for normalise in (False, True):
        loss, _ = score_identity_loss(*models.values(), x0, *rest, 2.0, fake_guidance_scale=2.0, normalise=normalise)
        (gradients[normalise],) = torch.autograd.grad(loss, x0)
    _, judged = score_distillation_loss("sds", "x0", models["teacher"], x0, *rest, 2.0)
    ratio = gradients[False] / gradients[True]
    assert (ratio - ratio[:, :1]).abs().max() < 1e-9
    assert ratio[:, 0].mean().item() == pytest.approx(judged["teacher_error"].item(), rel=1e-6)


def test_taken_on_the_sample_it_is_the_same_loss_and_leaves_no_gradient_in_the_scores() -> None:
    models, (z, *rest) = tiny(VP, "v")
    found = []
    for cut in (False, True):
        scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

        def loss_of(x0: Tensor) -> Any:
            return score_identity_loss(*models.values(), x0, *rest, 2.0, fake_guidance_scale=2.0)

        loss, logs = on_the_sample(loss_of, scale * z) if cut else loss_of(scale * z)
        parameters = [p for m in models.values() for p in m.network.parameters()]
        if cut:
            loss.backward()
            assert all(p.grad is None for p in parameters) and logs["grad_rms"] > 0
            found.append((loss.detach(), scale.grad))
        else:
            found.append((loss.detach(), torch.autograd.grad(loss, scale)[0]))
    torch.testing.assert_close(*found)


def test_what_is_logged_does_not_depend_on_how_the_batch_is_cut() -> None:
    models, args = tiny(VP, "v")
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def values(rows: slice) -> dict[str, Tensor]:
        x0, *rest = (part[rows] if len(part) > 1 else part for part in args)
        options = {"guidance_scale": 2.0, "fake_guidance_scale": 2.0}
        loss, logs = on_the_sample(lambda x: score_identity_loss(*models.values(), x, *rest, **options), scale * x0)
        return {"loss": loss, **logs}

    n = len(args[0])
    whole, halves = values(slice(n)), [values(slice(n // 2)), values(slice(n // 2, n))]
    assert n % 2 == 0 and set(whole) == {"loss", "gap_rms", "grad_rms", "teacher_error"}
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(half[name].item() for half in halves) / 2, rel=1e-6), name


def test_errors_say_what_is_wrong() -> None:
    models, (x0, t, eps, cond, null) = tiny(VP, "v")
    with pytest.raises(ValueError, match="must be equal"):
        score_identity_loss(*models.values(), x0, t, eps[:2], cond, null)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_a_gaussian_student_finds_mean_and_deviation(alpha: float) -> None:
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    std = torch.tensor([0.5, 1.5], dtype=torch.float64)
    teacher = GaussianTeacher(VP, mean, std, "v")
    m = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    s = torch.ones(2, dtype=torch.float64, requires_grad=True)
    fake_m, fake_log_s = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    student, learner = torch.optim.Adam([m, s], 0.05, (0.0, 0.9)), torch.optim.Adam([fake_m, fake_log_s], 0.1)
    for step in range(400):
        for optimiser in (student, learner):
            optimiser.param_groups[0]["lr"] *= 0.99 if step > 200 else 1.0
        for k in range(3):  # the fake score is learnt, by its denoising loss
            random = SampleRandom(k, range(64 * step, 64 * step + 64))
            x0 = m + s * random.normal("z", (2,), torch.float64)
            eps = random.normal("eps", (2,), torch.float64)
            t = VP.timestep(random.uniform("t"), 0.02, 0.98)
            fake = GaussianTeacher(VP, fake_m, fake_log_s.exp(), "v")
            if k == 0 and step > 20:
                loss, _ = on_the_sample(
                    lambda x0, f=fake, t=t, e=eps: score_identity_loss(teacher, f, x0, t, e, None, None, alpha=alpha),
                    x0,
                )
                student.zero_grad()
                loss.backward()
                student.step()
            loss = denoising_loss(fake, x0, t, eps, None, "v")
            learner.zero_grad()
            loss.backward()
            learner.step()
    torch.testing.assert_close(m.detach(), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(s.detach().abs(), std, rtol=0, atol=0.1)
