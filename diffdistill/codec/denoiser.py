"""The diffusion transformer of the codec, which is run once, in the decoder's latent u at f16.

    u (32, f16) --patches of 2 x 2--> tokens (f32) --blocks--> v;   u - rho v

Training first makes it a multi-step flow-matching model of u: with x_t = (1 - t) u + t eps it predicts v = eps - u.
The decoder then takes its mean for x_t, and moves it by -rho v, where the step rho is given for each element by the
scales of the entropy model (where they are large, rounding lost much), or for each sample alone. DiT-IC (arXiv
2603.13162) does so; in its released code rho = 0.4 + 0.15 |log scale|.

Notable:
- there is no text. Conditions are tokens that are pooled from the code (latent-conditioned guidance) and a map of it;
- attention is over all tokens of an image, or of a tile;
- rho starts at zero, so that a codec without a denoiser is where training starts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 2
POOLED = 16  # condition tokens: a grid of 4 x 4


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
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        """x (B, N, width), condition (B, M, width), time (B, 6, width) or (B, N, 6, width) to x's shape."""
        shift, scale, gate, shift2, scale2, gate2 = (time + self.modulation).unbind(-2)
        parts = (shift, scale, gate, shift2, scale2, gate2)
        if time.dim() == 3:
            parts = tuple(part[:, None] for part in parts)  # type: ignore[assignment]
        shift, scale, gate, shift2, scale2, gate2 = parts
        q, k, v = self.qkv(self.norms[0](x) * (1 + scale) + shift).chunk(3, -1)
        x = x + gate * self.merge(self._attend(q, k, v))
        k, v = self.key_value(condition).chunk(2, -1)
        x = x + self.bring(self._attend(self.query(self.norms[1](x)), k, v))
        x = x + gate2 * self.down(F.gelu(self.up(self.norms[2](x) * (1 + scale2) + shift2)))
        return x

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class DenoisingTransformer(nn.Module):
    """Predicts the flow v of u.

    Args:
        latent: channels of u.
        code: channels of the code, for the condition.
        width: of a token.
        depth: number of blocks.
        heads: number of attention heads.
    """

    def __init__(self, latent: int, code: int, width: int = 144, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.into = nn.Conv2d(latent, width, PATCH, PATCH)
        self.map = nn.Conv2d(code, width, PATCH, PATCH)
        self.pool = nn.Linear(code, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, latent * PATCH**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        nn.init.zeros_(self.map.weight)
        for parameter in self.time[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor, code: Tensor) -> Tensor:
        """v of x.

        Args:
            x: (B, latent, h, w); h and w are even.
            time: (B,) in [0, 1], or (B, h/2, w/2) for a time per token.
            code: (B, code, h, w), the condition.

        Returns:
            (B, latent, h, w).
        """
        height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        code = torch.asinh(code)
        tokens = (self.into(x) + self.map(code)).flatten(2).transpose(1, 2)
        tokens = tokens + positions(height, width, self.width, x.device).to(tokens.dtype)
        pooled = F.adaptive_avg_pool2d(code, (4, 4)).flatten(2).transpose(1, 2)
        modulation = self.time(sinusoids(time.flatten(1) if time.dim() > 1 else time, self.width))
        modulation = modulation.unflatten(-1, (6, self.width))
        condition = self.pool(pooled)
        for block in self.blocks:
            tokens = block(tokens, condition, modulation)
        made = self.out(self.norm(tokens)).transpose(1, 2).unflatten(2, (height, width))
        return F.pixel_shuffle(made, PATCH)


def sinusoids(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 t: (..., width)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=time.device) / (width // 2))
    angles = 1000.0 * time[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of rows and columns: (height * width, channels), channels a multiple of 4."""
    half = channels // 2
    rows, columns = (sinusoids(torch.arange(n, device=device) / 1000.0, half) for n in (height, width))
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], -1)
    return grid.flatten(0, 1)
