"""What the tests of two-time methods share: an exact flow map, and a small problem in the plane."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Denoiser, FlowSchedule
from diffdistill.diffusion.any_step import TwoTimeDenoiser, any_step

SCHEDULE = FlowSchedule()


def exact_average_velocity(mean: Tensor | float, std: float) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
    """Network of two times whose value is (x_t - x_s) / (t - s) on the paths to N(mean, std^2); smooth at s = t.

    x_t = (1 - t) mean + d_t z with d_t^2 = (1 - t)^2 std^2 + t^2, and z stays the same along a path.
    """

    def network(x: Tensor, time: Tensor, earlier: Tensor, cond: Any) -> Tensor:
        t, s = (a.double().view(-1, *[1] * (x.dim() - 1)) / 1000 for a in (time, earlier))
        d_t, d_s = (((1 - a) ** 2 * std**2 + a**2).sqrt() for a in (t, s))
        slope = (std**2 * (t + s - 2) + t + s) / ((d_t + d_s) * d_t)  # (d_t - d_s) / (t - s) / d_t
        return slope * (x - (1 - t) * mean) - mean

    return network


def two_times(network: Any) -> TwoTimeDenoiser:
    return TwoTimeDenoiser(network, SCHEDULE)


class Plane(nn.Module):
    """A perceptron (x, time, earlier time, class) -> velocity in the plane."""

    def __init__(self, classes: int, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 12 + classes, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip
        self.classes = classes

    def forward(self, x: Tensor, time: Tensor, earlier: Tensor, cond: Tensor) -> Tensor:
        waves = [w for a in (time, time - earlier) for k in (1, 2, 4) for w in _wave(k * a / 1000)]
        label = nn.functional.one_hot(cond, self.classes).to(x.dtype)
        return self.layers(torch.cat([x, torch.stack(waves, 1).to(x.dtype), label], 1))


def _wave(a: Tensor) -> tuple[Tensor, Tensor]:
    return (a * math.pi / 2).sin(), (a * math.pi / 2).cos()


CENTRES = torch.tensor([[[1.1, 1.1], [-1.1, -1.1]], [[1.1, -1.1], [-1.1, 1.1]]])  # (class, component, 2)
SPREAD = 0.25


def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n points (n, 2) and their classes (n,): two classes of two bumps each."""
    cond = torch.randint(2, (n,), generator=generator)
    which = torch.randint(2, (n,), generator=generator)
    return CENTRES[cond, which] + SPREAD * torch.randn(n, 2, generator=generator), cond


def exact_mixture(schedule: Any = SCHEDULE) -> Denoiser:
    """The exact velocity of the classes; class 2 is no class."""

    def network(x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        t = time.to(x)[:, None] / 1000
        means = torch.cat([CENTRES, CENTRES.flip(0)], 1).to(x)  # (2, 4, 2): one's own class first
        means = torch.cat([means, means[:1]])[cond]
        off = torch.where(cond == 2, 0.0, -torch.inf).to(x)[:, None]
        prior = torch.cat([torch.zeros_like(off).expand(-1, 2), off.expand(-1, 2)], 1)
        variance = (1 - t) ** 2 * SPREAD**2 + t**2
        away = x[:, None] - (1 - t)[..., None] * means
        share = (prior - away.square().sum(-1) / (2 * variance)).softmax(1)
        eps = (share[..., None] * t[..., None] * away / variance[..., None]).sum(1)
        x0 = (share[..., None] * (means + (1 - t)[..., None] * SPREAD**2 * away / variance[..., None])).sum(1)
        return eps - x0

    return Denoiser(network, schedule, "flow")


def train(network: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float = 3e-3) -> None:
    """Adam with a cosine to 0."""
    optimiser = torch.optim.Adam(network.parameters(), rate, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
        decay.step()


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Root mean squared distance of quantiles over 64 directions of the plane; x, y of shape (n, 2)."""
    angle = torch.arange(64) * math.pi / 64
    directions = torch.stack([angle.cos(), angle.sin()])
    return ((x @ directions).sort(0).values - (y @ directions).sort(0).values).square().mean().sqrt().item()


def distance(sample: Callable[[Tensor, Tensor], Tensor], n: int = 4096) -> float:
    """Mean over classes of the distance of samples, made of noise (n, 2) and classes (n,), from real ones."""
    g = torch.Generator().manual_seed(123)
    found = []
    for label in (0, 1):
        z, cond = torch.randn(n, 2, generator=g), torch.full((n,), label)
        real = CENTRES[label, torch.randint(2, (n,), generator=g)] + SPREAD * torch.randn(n, 2, generator=g)
        with torch.no_grad():
            found.append(sliced_wasserstein(sample(z, cond), real))
    return sum(found) / 2


def floor() -> float:
    """What real samples have."""
    g = torch.Generator().manual_seed(7)
    return distance(lambda z, cond: CENTRES[cond, torch.randint(2, (len(z),), generator=g)]
                    + SPREAD * torch.randn(len(z), 2, generator=g))  # fmt: skip


def any_step_distance(network: Any, steps: int, target_fraction: float = 1.0) -> float:
    denoiser = two_times(network)
    return distance(
        lambda z, cond: any_step(
            lambda x, t, s: denoiser(x, t, s, cond), z, SCHEDULE, steps, target_fraction=target_fraction
        )
    )
