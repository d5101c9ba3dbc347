"""A mixture in the plane: VSD and SiD reach the target's distribution, SDS from the same start does not.

Free points are their own generator, and their exact score is the fake one. The floor is the distance between two
sets of real samples; points that are laid out evenly come nearer than that. `bench/mixture.py` has the whole family.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffdistill.diffusion import MixtureTeacher, VPSchedule
from diffdistill.distill import SampleRandom, score_distillation_loss, time_range
from diffdistill.distill.score_identity import score_identity_loss

SCHEDULE = VPSchedule.from_config({"beta_schedule": "linear"})
N = 256
WEIGHTS = torch.tensor([0.45, 0.3, 0.15, 0.1], dtype=torch.float64)
ANGLE = torch.tensor([0.0, 1.5, 2.5, 4.5], dtype=torch.float64)
MEANS = 2 * torch.stack([ANGLE.cos(), ANGLE.sin()], 1)
STDS = torch.tensor([0.2, 0.2, 0.4, 0.1], dtype=torch.float64)


def distil(residual: str, weight: str = "", steps: int = 150, alpha: float = 1.0) -> Tensor:
    """Points trained by a row of the family, or by "sid"; the fake score is exact, that of the points."""
    teacher = MixtureTeacher(SCHEDULE, MEANS, STDS, WEIGHTS, "v")
    x = SampleRandom(0, range(N)).normal("start", (2,), torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.15, betas=(0.5, 0.9))
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        random = SampleRandom(0, range((step + 1) * N, (step + 2) * N))
        t = SCHEDULE.timestep(random.uniform("t"), *time_range(step / steps, (0.02, 0.98), (0.02, 0.5)))
        eps = random.normal("eps", (2,), torch.float64)
        fake: Any = MixtureTeacher(SCHEDULE, x.detach(), torch.zeros(N), torch.full((N,), 1 / N), "v")
        args = (x, t, eps, None, None, 1.0)
        if residual == "sid":
            loss, _ = score_identity_loss(teacher, fake, *args, alpha=alpha)
        else:
            loss, _ = score_distillation_loss(residual, weight, teacher, *args, fake=fake, reduction="batch")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return x.detach()


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    angle = torch.arange(64, dtype=torch.float64) * math.pi / 64
    along = torch.stack([angle.cos(), angle.sin()])
    return ((a @ along).sort(0).values - (b @ along).sort(0).values).square().mean().sqrt().item()


def ratio_to_the_floor(points: Tensor) -> float:
    generator = torch.Generator().manual_seed(1)
    target = MixtureTeacher(SCHEDULE, MEANS, STDS, WEIGHTS)
    real = [target.sample(N, generator) for _ in range(32)]
    floor = sum(sliced_wasserstein(a, b) for a, b in zip(real[::2], real[1::2], strict=True)) / 16
    return sum(sliced_wasserstein(points, x) for x in real) / 32 / floor


@pytest.mark.parametrize(
    ("residual", "weight", "alpha"),
    [("vsd", "sigma2", 1.0), ("vsd", "dmd", 1.0), ("vsd", "x0", 1.0), ("sid", "", 1.0), ("sid", "", 1.2)],
    ids=["SwiftBrush", "DMD2", "Diff-Instruct", "SiD", "SiD, alpha 1.2"],
)
def test_what_has_a_fake_score_reaches_the_mixture(residual: str, weight: str, alpha: float) -> None:
    points = distil(residual, weight, alpha=alpha)
    assert ratio_to_the_floor(points) < 1.2
    distance, mode = torch.cdist(points, MEANS).min(1)
    shares = torch.bincount(mode, minlength=4) / N
    torch.testing.assert_close(shares.double(), WEIGHTS, rtol=0, atol=0.035)
    widths = torch.stack([distance[mode == k].median() for k in range(4)]) / (2 * math.log(2)) ** 0.5
    # under sigma^2 the narrow mode stays too wide (1.2 to 1.9 times): the times at which it shows hardly count
    modes = 3 if weight == "sigma2" else 4
    torch.testing.assert_close(widths[:modes], STDS[:modes], rtol=0.25, atol=0)


def test_sds_does_not() -> None:
    """Seeking the noised density's mode, all points go where the most is."""
    assert ratio_to_the_floor(distil("sds", "sigma2")) > 3
