"""The diffusion transformer of the codec, which is run once, on the code.

    w (C, f16) --a token for each place--> blocks --> + a(t) w + b(t) condition --> v, the flow

Training first makes it a multi-step flow-matching model: with w_t = (1 - t) w + t eps it predicts v = eps - w.
`OneStep` then moves the code by -rho v.

Notable:
- there is no text. The condition is a map, which is added to the tokens, and tokens that are pooled from it
  (latent-conditioned guidance). Its first C channels are a guess of w;
- v is what the blocks say plus a linear part in each channel, since tokens are narrower than the code. For a w of
  independent values with variance 1 the best flow is (2t - 1) / ((1 - t)^2 + t^2) w_t, and a(t) starts there;
- tokens have no positions. A depthwise convolution in each block sees neighbours instead (SANA, arXiv 2410.10629), so
  that images may be larger than the crops of training;
- attention is over all tokens of an image, or of a tile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLED = 4  # condition tokens are a grid of 4 x 4


class Block(nn.Module):
    """Self-attention, attention to the condition, and two layers, each modulated by the time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(3)])
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value, self.bring = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.near = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width)
        self.modulation = nn.Parameter(torch.zeros(6, width))
        nn.init.dirac_(self.near.weight, 3 * width)
        nn.init.zeros_(self.near.bias)  # type: ignore[arg-type]
        nn.init.ones_(self.modulation[2])
        nn.init.ones_(self.modulation[5])

    def forward(self, x: Tensor, condition: Tensor, time: Tensor, grid: tuple[int, int]) -> Tensor:
        """One block.

        Args:
            x: (B, N, width) tokens.
            condition: (B, M, width) tokens.
            time: (B, 6, width), or (B, N, 6, width) for a time per token.
            grid: rows and columns of the N tokens.

        Returns:
            (B, N, width).
        """
        parts = (time + self.modulation).unbind(-2)
        if time.dim() == 3:
            parts = tuple(part[:, None] for part in parts)
        shift, scale, gate, shift2, scale2, gate2 = parts
        q, k, v = self.qkv(self.norms[0](x) * (1 + scale) + shift).chunk(3, -1)
        x = x + gate * self.merge(self._attend(q, k, v))
        k, v = self.key_value(condition).chunk(2, -1)
        x = x + self.bring(self._attend(self.query(self.norms[1](x)), k, v))
        inner = F.gelu(self.up(self.norms[2](x) * (1 + scale2) + shift2))
        inner = self.near(inner.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        return x + gate2 * self.down(inner)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class DenoisingTransformer(nn.Module):
    """Predicts the flow v of w.

    Args:
        channels: C, of w.
        condition: channels of the condition, C or more.
        width: of a token.
        depth: number of blocks.
        heads: number of attention heads.
    """

    def __init__(self, channels: int, condition: int, width: int = 192, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.into, self.map = nn.Conv2d(channels, width, 1), nn.Conv2d(condition, width, 1)
        self.pool = nn.Linear(condition, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.modulation, self.linear = nn.Linear(width, 6 * width), nn.Linear(width, 2 * channels)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, channels)
        for layer in (self.out, self.modulation, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.map.weight)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """v of x.

        Args:
            x: (B, C, h, w).
            time: (B,) in [0, 1], or (B, h, w) for a time per token.
            condition: (B, condition, h, w); None for none.

        Returns:
            (B, C, h, w).
        """
        grid = x.shape[-2], x.shape[-1]
        tokens = self.into(x)
        if condition is None:
            tokens = tokens + self.map.bias[:, None, None]  # type: ignore[index]
            pooled = self.pool.bias.expand(len(x), 1, -1)
        else:
            tokens = tokens + self.map(condition)
            pooled = self.pool(F.adaptive_avg_pool2d(condition, POOLED).flatten(2).transpose(1, 2))
        tokens = tokens.flatten(2).transpose(1, 2)
        t = time.flatten(1) if time.dim() > 1 else time
        known = self.time(sinusoids(t, self.width))
        modulation = self.modulation(known).unflatten(-1, (6, self.width))
        for block in self.blocks:
            tokens = block(tokens, pooled, modulation, grid)
        made: Tensor = self.out(self.norm(tokens)).transpose(1, 2).unflatten(2, grid)
        a, b = self.linear(known).chunk(2, -1)
        best = ((2 * t - 1) / ((1 - t).square() + t.square()))[..., None]
        a, b = (
            part.transpose(1, 2).unflatten(2, grid) if part.dim() > 2 else part[..., None, None]
            for part in (a + best, b)
        )
        made = made + a * x
        return made if condition is None else made + b * condition[:, : self.channels]


def sinusoids(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 t: (..., width)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = 1000.0 * time[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
