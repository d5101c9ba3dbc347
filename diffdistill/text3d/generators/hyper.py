"""Hyper-iNGP: a hypernetwork makes the small networks of each prompt, which read features that all prompts share.

    pooled prompt (P, D) --linear, LayerNorm, SiLU, linear--> the matrices of each prompt's heads
    point --shared hash grid, or dense levels--> features --heads of the prompt--> distance, colour

Source: ScaleDreamer (arXiv 2407.02040) with the sizes of its released configuration; the idea is ATT3D's (arXiv
2306.07349), which makes the grid in place of the heads.

Notable:
- features at points that all prompts share are looked up once for all of them;
- at the start, a prompt's matrices are a common part (the bias of the last layer), drawn as those of an ordinary
  network, and a part of half its size that depends on the prompt. The released code has no common part at the start;
  the number of parameters is the same;
- all of it runs in float32 under autocast: the matrices are what the surface depends on, and they are cheap to make;
- the grid is read when a field is asked, after `forward`. So a field belongs to the weights of its moment: after an
  update of the grid it says something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.text3d.fields.dense_levels import DenseLevels, DenseLevelSettings
from diffdistill.text3d.fields.feature_field import FeatureField
from diffdistill.text3d.fields.hash_grid import HashGrid, HashGridSettings
from diffdistill.text3d.fields.heads import Heads, HeadSettings, first_deviation
from diffdistill.text3d.fields.precision import at_least_float32, full_precision
from diffdistill.text3d.fields.ranges import check_whole

from .generator import check_inputs

PROMPT_PART = 0.5  # of the matrices at the start: the size of what depends on the prompt, to that of the common part
SILU_RMS = 0.596  # of SiLU of standard normal values


@dataclass(frozen=True)
class HyperSettings:
    """The sizes of a Hyper generator; the defaults are the paper's.

    Args:
        grid: the shared features.
        head: the networks of each prompt, whose matrices are made.
        prompt_dim: width of the pooled embedding.
        bottleneck: width of the hypernetwork.
        radius: half the side of the box.

    Raises:
        UserError: a setting is out of its range.
    """

    grid: HashGridSettings | DenseLevelSettings = HashGridSettings()
    head: HeadSettings = HeadSettings(hidden=(64,), sphere=0.5)
    prompt_dim: int = 1024
    bottleneck: int = 64
    radius: float = 2.0

    def __post_init__(self) -> None:
        check_whole("prompt_dim", self.prompt_dim, 1, 1 << 16)
        check_whole("bottleneck", self.bottleneck, 1, 1 << 14)
        self.head.check_inside(self.radius)
        if not isinstance(self.grid, HashGridSettings | DenseLevelSettings):
            raise UserError(f"grid is a {type(self.grid).__name__}; it must be HashGridSettings or DenseLevelSettings")

    @classmethod
    def small(cls, prompt_dim: int = 128) -> HyperSettings:
        """0.19 million parameters, in a box of half-size 1: dense levels, and one head of 32 hidden values."""
        head = HeadSettings(hidden=(32,), joint=True, sphere=0.5)
        return cls(DenseLevelSettings(), head, prompt_dim=prompt_dim, radius=1.0)


class HyperNetwork(nn.Module):
    """A prompt to the matrices of its heads.

    Args:
        inputs: D, the width of a pooled embedding.
        bottleneck: its own width.
        shapes: rows and columns of the matrices of each chain (`HeadSettings.shapes`).
    """

    def __init__(self, inputs: int, bottleneck: int, shapes: tuple[tuple[tuple[int, int], ...], ...]) -> None:
        super().__init__()
        self.shapes = shapes
        sizes = [rows * columns for rows, columns in chain.from_iterable(shapes)]
        self.into, self.norm = nn.Linear(inputs, bottleneck, bias=False), nn.LayerNorm(bottleneck)
        self.out = nn.Linear(bottleneck, sum(sizes))
        with torch.no_grad():
            nn.init.xavier_normal_(self.into.weight)
            parts = self.out.weight.split(sizes), self.out.bias.split(sizes)
            lasts = (i == len(c) - 1 for c in shapes for i in range(len(c)))
            for (rows, _), last, weight, bias in zip(chain.from_iterable(shapes), lasts, *parts, strict=True):
                deviation = first_deviation(rows, last)
                bias.normal_(0, deviation)
                weight.normal_(0, PROMPT_PART * deviation / (SILU_RMS * bottleneck**0.5))

    def forward(self, pooled: Tensor) -> list[list[Tensor]]:
        """Pooled embeddings (P, D) to the matrices (P, in, out) of each chain."""
        with full_precision(pooled):
            flat = self.out(F.silu(self.norm(self.into(at_least_float32(pooled)))))
        made, at = [], 0
        for shapes in self.shapes:
            matrices = []
            for rows, columns in shapes:
                matrices.append(flat[:, at : at + rows * columns].unflatten(1, (rows, columns)))
                at += rows * columns
            made.append(matrices)
        return made


class HyperGenerator(nn.Module):
    """Hyper-iNGP; implements `Generator`. It reads the pooled embedding alone.

    Args:
        settings: the sizes.
    """

    needs_tokens, token_dim, noise_dim = False, 0, 0
    layer_shapes: tuple[tuple[int, ...], ...] = ()

    def __init__(self, settings: HyperSettings) -> None:
        super().__init__()
        self.settings, self.radius, self.prompt_dim = settings, settings.radius, settings.prompt_dim
        self.grid: HashGrid | DenseLevels = (
            HashGrid(settings.grid) if isinstance(settings.grid, HashGridSettings) else DenseLevels(settings.grid)
        )
        shapes = settings.head.shapes(self.grid.channels)
        self.network = HyperNetwork(settings.prompt_dim, settings.bottleneck, shapes)

    def forward(
        self, pooled: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> FeatureField:
        """Objects of prompts (P, D); see `Generator`. `tokens`, `mask` and `noise` are ignored."""
        check_inputs(self, pooled, tokens, mask, noise)
        heads = Heads(self.settings.head, self.network(pooled))
        return FeatureField(self.grid, heads, len(pooled), self.radius, pooled.device)
