"""Priors for tests: a small network with random weights, and exact ones of Gaussians around rendered views.

Generators for tests too, which are smaller than the small presets.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffdistill.diffusion import Schedule
from diffdistill.text3d.fields.dense_levels import DenseLevelSettings
from diffdistill.text3d.fields.heads import HeadSettings
from diffdistill.text3d.generators import HyperSettings, TriplaneSettings, VoxelConvSettings
from diffdistill.text3d.generators.presets import PRESETS
from diffdistill.text3d.multi_view import MultiViewSettings, MultiViewUNet
from diffdistill.text3d.prior import MultiViewPrior
from diffdistill.text3d.words import Vocabulary

WORDS = Vocabulary(("red", "blue", "ball", "box"))
HEAD = HeadSettings((8,), joint=True, sphere=0.5)
TINY = {
    "hyper_tiny": HyperSettings(DenseLevelSettings((3, 5), 2), HEAD, bottleneck=8, radius=1.0),
    "triplane_tiny": TriplaneSettings(16, 1, 2, 2, 2, 4, token_std=0.5, head=HEAD, radius=1.0),
    "voxel_tiny": VoxelConvSettings((8, 8), 4, 1, 8, 8, noise_dim=4, head=HEAD, radius=1.0),  # it takes noise
}


def add_tiny_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `TINY` presets for one test."""
    for name, settings in TINY.items():
        monkeypatch.setitem(PRESETS, name, lambda settings=settings: settings)


def random_prior(seed: int = 0, size: int = 16, views: int = 4, vocabulary: Vocabulary = WORDS) -> MultiViewPrior:
    """A network whose layers all say something: those that are zero at the start are not."""
    settings = MultiViewSettings(size=size, views=views, widths=(16, 16, 16), embedding=16)
    torch.manual_seed(seed)
    network = MultiViewUNet(settings, len(vocabulary.words)).eval()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn_like(p)
        network.words.weight[0] = 0
    return MultiViewPrior(network.requires_grad_(False), vocabulary)


class GaussianViews(nn.Module):
    """The exact v-prediction for views N(mean, spread^2 I), in place of a `MultiViewUNet`.

    With words, the mean is an object on the background, in [-1, 1]; without, a grey that depends on the camera and on
    the background, so a condition that loses these is seen.

    Args:
        front: what the objects show on black, (K, V, 3, S, S); the last word of a prompt says which object it is.
        opacity: (K, V, S, S).
        spread: standard deviations with and without words.
        schedule: of the prior.
    """

    def __init__(
        self, front: Tensor, opacity: Tensor, spread: tuple[float, float], schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        self.front, self.opacity, self.schedule = front, opacity, schedule
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))  # of the mean with words
        self.spread = nn.Parameter(torch.tensor(spread, dtype=torch.float64))

    def mean(self, cond: Any) -> Tensor:
        """(B, V, 3, S, S)."""
        words, background = cond["words"], cond["background"].double()[:, None, :, None, None]
        azimuth, elevation = cond["camera"].double().deg2rad()[..., None, None, None].unbind(2)
        empty = (0.5 * azimuth.cos() + 0.3 * elevation.sin() + 0.4 * background).expand(-1, -1, 3, -1, -1)
        first = WORDS.words.index("ball") + 1
        thing = (words.amax(1) - first).clamp_min(0)
        full = 2 * (self.front[thing] + (1 - self.opacity[thing])[:, :, None] * background) - 1 + self.shift
        return torch.where((words > 0).any(1).view(-1, 1, 1, 1, 1), full, empty)

    def deviation(self, cond: Any) -> Tensor:
        """(B, 1, 1, 1, 1)."""
        return self.spread[(~(cond["words"] > 0).any(1)).long()].view(-1, 1, 1, 1, 1)

    def forward(self, x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        assert self.schedule is not None
        alpha, sigma = (level(time).view(-1, 1, 1, 1, 1) for level in (self.schedule.alpha, self.schedule.sigma))
        mean, variance = self.mean(cond), self.deviation(cond).square()
        centred = (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)
        x0, eps = mean + alpha * variance * centred, sigma * centred
        return alpha * eps - sigma * x0


def gaussian_prior(front: Tensor, opacity: Tensor, spread: tuple[float, float] = (0.2, 0.7)) -> MultiViewPrior:
    """The prior of `GaussianViews`."""
    network = GaussianViews(front, opacity, spread).requires_grad_(False)
    made = MultiViewPrior(network, WORDS)  # type: ignore[arg-type]
    network.schedule = made.schedule
    return made
