"""Each method, from nothing, on two classes of two bumps that cross like an X: distances at 1, 2, 4 and 8 steps.

Sliced Wasserstein distance from real samples, mean of the two classes (real ones: .06), 700 updates of 256 samples.
The exact velocity, which flow matching aims at, has 1.13, .41, .14, .08: one step gives the mean of two bumps.
`bench/mixture_any_step.py` has them side by side, over seeds.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_time_toy import (
    SCHEDULE,
    Plane,
    any_step_distance,
    distance,
    draw,
    exact_mixture,
    floor,
    train,
    two_times,
)

from diffdistill.diffusion import Denoiser
from diffdistill.distill import bootstrap_loss, boundary_loss, signal_step, teacher_signal
from diffdistill.distill.consistency import consistency_loss, consistency_sample, skipped_times
from diffdistill.distill.flow_matching import flow_matching_loss, logit_normal_times
from diffdistill.distill.mean_flow import mean_flow_loss, mean_flow_times
from diffdistill.distill.self_evaluation import earlier_times, fake_branch_loss, self_evaluation_loss
from diffdistill.distill.shortcut import shortcut_loss, shortcut_times

SIZE, UPDATES = 256, 700
NULL, FAKE = torch.tensor([2]), 3  # classes 0 and 1, none, and FAKE + class


class Run:
    """A network, its average, and a seeded stream of batches."""

    def __init__(self, decay: float = 0.99) -> None:
        torch.manual_seed(0)
        self.network, self.g = Plane(6), torch.Generator().manual_seed(1)
        self.average, self.decay = copy.deepcopy(self.network), decay

    def uniform(self) -> Tensor:
        return torch.rand(SIZE, generator=self.g, dtype=torch.float64)

    def normal(self) -> Tensor:
        return torch.randn(SIZE, 2, generator=self.g)

    def batch(self, drop: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
        x0, cond = draw(SIZE, self.g)
        return x0, self.normal(), torch.where(self.uniform() < drop, 2, cond)

    def fit(self, loss: Callable[[float], Tensor]) -> nn.Module:
        def with_average(step: int) -> Tensor:
            decay = min(self.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for a, b in zip(self.average.parameters(), self.network.parameters(), strict=True):
                    a.lerp_(b, 1 - decay)
            return loss(step / UPDATES)

        train(self.network, with_average, UPDATES)
        return self.network


def distances(network: Any, target_fraction: float = 1.0) -> list[float]:
    return [round(any_step_distance(network, n, target_fraction), 3) for n in (1, 2, 4, 8)]


def test_what_distances_mean() -> None:
    exact = exact_mixture()
    found = distances(lambda x, t, s, c: exact.network(x, t, c))
    assert floor() < 0.07 and found == pytest.approx([1.13, 0.41, 0.14, 0.08], abs=0.01)


def test_flow_matching() -> None:
    run = Run()
    denoiser = two_times(run.network)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        return flow_matching_loss(denoiser, x0, run.uniform(), eps, cond)

    one, two, four, eight = distances(run.fit(loss))
    print("flow matching", one, two, four, eight)
    assert one > 0.8 and eight < 0.3


@pytest.mark.parametrize("fake", [False, True])
def test_self_e_makes_in_one_step_what_flow_matching_cannot(fake: bool) -> None:
    run = Run()
    denoiser, evaluator = two_times(run.network), two_times(run.average)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        t = logit_normal_times(run.normal()[:, 0], 0.4)
        s = earlier_times(t, run.uniform(), min(1.0, progress / 0.3), run.uniform() < 0.5)
        fake_cond = cond + FAKE if fake else None
        value, judged = self_evaluation_loss(
            denoiser, x0, t, s, eps, run.normal(), cond, NULL, evaluator, fake_cond=fake_cond
        )
        return value + fake_branch_loss(denoiser, judged, fake_cond) if fake else value

    network = run.fit(loss)
    halfway, full, none = (distances(network, fraction) for fraction in (0.5, 1.0, 0.0))
    print("Self-E, fake branch", fake, "target_fraction .5", halfway, "1", full, "0", none)
    assert halfway[0] < 0.45 and halfway[1] < 0.35 and halfway[3] < 0.2
    assert none[0] > halfway[0] + 0.2  # at s = t it is a flow-matching model still


@pytest.mark.parametrize("derivative", ["difference"])  # a product takes ten times as long here, and is tested apart
def test_mean_flow(derivative: Any) -> None:
    run = Run()
    denoiser = two_times(run.network)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        t, r = mean_flow_times(run.uniform(), run.uniform(), run.uniform() < 0.5)
        # in two dimensions the adaptive weight of one sample depends on its noise, and biases: left out
        return mean_flow_loss(denoiser, x0, t, r, eps, cond, derivative=derivative, power=0.0)[0]

    found = distances(run.fit(loss))
    print("MeanFlow", found)
    assert max(found) < 0.4


def test_shortcut() -> None:
    run = Run()
    denoiser, target = two_times(run.network), two_times(run.average)

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch()
        t, s = shortcut_times(run.uniform(), run.uniform(), run.uniform() < 0.75, run.uniform(), 32)
        return shortcut_loss(denoiser, x0, t, s, eps, cond, target=target, finest=32)

    found = distances(run.fit(loss))
    print("shortcut", found)
    assert max(found) < 0.4


def test_consistency_distillation_of_the_exact_teacher() -> None:
    run = Run(0.95)

    def score(network: nn.Module) -> Denoiser:
        return Denoiser(lambda x, time, c: network(x, time, time, c), SCHEDULE, "flow")

    student, target, teacher = score(run.network), score(run.average), exact_mixture()

    def loss(progress: float) -> Tensor:
        x0, eps, cond = run.batch(0.0)
        t, r = skipped_times(SCHEDULE, run.uniform(), 20)
        return consistency_loss(student, target, teacher, x0, t, r, eps, cond, None, 1.0)

    run.fit(loss)
    g = torch.Generator().manual_seed(5)
    found = [
        distance(lambda z, c, n=n: consistency_sample(student, z, [1 - i / n for i in range(n)], c, generator=g))
        for n in (1, 2, 4, 8)
    ]
    print("consistency", found)
    assert max(found) < 0.4


def test_boot_of_the_exact_teacher() -> None:
    """Its network predicts the signal at the time that it gets, and always gets the noise."""
    run, teacher, end = Run(), exact_mixture(), 0.01

    def signal(z: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return run.network(z, 1000 * t, 1000 * t, cond)

    def loss(progress: float) -> Tensor:
        _, z, cond = run.batch(0.0)
        t = 1 - (1 - end) * (1 - 1e-6) * run.uniform()
        s, first = (t - 0.05).clamp_min(end), torch.ones_like(t)
        y_s, y_first = signal(z, s, cond), signal(z, first, cond)
        with torch.no_grad():
            y_t = signal(z, t, cond)
            f = teacher_signal(teacher, y_t, z, t, s, cond, None, 1.0)
            f_first = teacher(z, first, cond).x0
        return bootstrap_loss(y_s, y_t, f, signal_step(SCHEDULE, t, s), "clipped") + boundary_loss(y_first, f_first)

    run.fit(loss)
    found = distance(lambda z, c: signal(z, torch.full((len(z),), end), c))
    print("BOOT", found)
    assert found < 0.4
