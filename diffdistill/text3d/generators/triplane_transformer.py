"""Triplane transformer: learnt tokens, one for each patch of three planes, read the tokens of a prompt.

    learnt tokens (3 S S, W) --blocks: cross-attention to the prompt, self-attention, two layers--> LayerNorm
      --each token to a patch of u x u, C channels--> planes (P, 3, C, u S, u S) --shared heads--> distance, colour

Source: the triplane transformer of ScaleDreamer (arXiv 2407.02040), which gives text to the decoder of LRM (arXiv
2311.04400) in place of an image.

Notable:
- the pooled embedding is not read; it only says how many prompts there are;
- the prompt's tokens are scaled to an rms of 1 first, which the released code does not do, so that any scale will do;
- a block has no biases in its queries, keys and values, LayerNorm's epsilon is 1e-6, and each part is added to what it
  reads (pre-norm);
- self-attention is over all tokens of the three planes: 3,072 of them in the paper's size, 192 in the small one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.text3d.fields.feature_field import FeatureField
from diffdistill.text3d.fields.heads import HeadSettings, SharedHeads
from diffdistill.text3d.fields.planes import Planes
from diffdistill.text3d.fields.ranges import check_number, check_whole

from .generator import check_inputs, unit_rms

EPSILON = 1e-6  # of LayerNorm


@dataclass(frozen=True)
class TriplaneSettings:
    """The sizes of a triplane transformer; the defaults are the paper's.

    Args:
        width: W, of a token; a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        side: S, tokens along a side of a plane.
        patch: u, values of a plane along a side of a token.
        channels: C, of a plane.
        token_dim: width of the prompt's tokens.
        token_std: the standard deviation of the learnt tokens at the start.
        head: the networks that read the three planes' features, of 3 C channels.
        radius: half the side of the box.

    Raises:
        UserError: a setting is out of its range.
    """

    width: int = 768
    depth: int = 12
    heads: int = 16
    side: int = 32
    patch: int = 2
    channels: int = 32
    token_dim: int = 1024
    token_std: float = 768**-0.5
    head: HeadSettings = HeadSettings(hidden=(64, 64), colour="mipnerf", sphere=0.8)
    radius: float = 2.0

    def __post_init__(self) -> None:
        for name, most in (("width", 1 << 13), ("depth", 256), ("heads", 256), ("side", 256), ("patch", 16)):
            check_whole(name, getattr(self, name), 1, most)
        check_whole("channels", self.channels, 1, 1024)
        check_whole("token_dim", self.token_dim, 1, 1 << 16)
        check_number("token_std", self.token_std, 0.0, 10.0)
        self.head.check_inside(self.radius)
        if self.width % self.heads:
            raise UserError(f"width is {self.width}, heads {self.heads}; width must be a multiple of heads")

    @classmethod
    def small(cls, token_dim: int = 128) -> TriplaneSettings:
        """1.11 million parameters, in a box of half-size 1: 3 x 8 x 8 tokens, planes of 32 x 32 with 16 channels."""
        return cls(
            width=128,
            depth=4,
            heads=4,
            side=8,
            patch=4,
            channels=16,
            token_dim=token_dim,
            token_std=0.5,
            head=HeadSettings(hidden=(32,), joint=True, sphere=0.5),
            radius=1.0,
        )


class Attention(nn.Module):
    """Attention of tokens to a context.

    Args:
        width: of tokens.
        context: width of the context.
        heads: number of heads.
    """

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (P, N, width), a context (P, L, context), and where it counts, (P, 1, 1, L), to (P, N, width)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), *self.key_value(context).chunk(2, -1))
        )
        made: Tensor = self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return made


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries (P, heads, N, d) to keys and values (P, heads, L, d), where a mask (P, 1, 1, L) is true.

    On a CPU the explicit formula is used for up to 256 tokens: with its gradient it takes half the time of the fused
    kernel there (192 tokens, one core). Both say the same.
    """
    if q.device.type != "cpu" or max(q.shape[2], k.shape[2]) > 256:
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v


class Block(nn.Module):
    """Cross-attention to the prompt, self-attention, and two layers with GELU between."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width, eps=EPSILON) for _ in range(3)])
        self.to_prompt, self.to_tokens = Attention(width, context, heads), Attention(width, width, heads)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, prompt: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (P, N, width) and the prompt's (P, L, context) to (P, N, width)."""
        x = x + self.to_prompt(self.norms[0](x), prompt, mask)
        inner = self.norms[1](x)
        x = x + self.to_tokens(inner, inner)
        made: Tensor = x + self.layers(self.norms[2](x))
        return made


class TriplaneTransformer(nn.Module):
    """The triplane transformer; implements `Generator`. It reads tokens, and a mask of them if there is one.

    Args:
        settings: the sizes.
    """

    needs_tokens, prompt_dim, noise_dim = True, 0, 0
    layer_shapes: tuple[tuple[int, ...], ...] = ()

    def __init__(self, settings: TriplaneSettings) -> None:
        super().__init__()
        self.settings, self.radius, self.token_dim = settings, settings.radius, settings.token_dim
        width, patch = settings.width, settings.patch
        self.tokens = nn.Parameter(torch.randn(3 * settings.side**2, width) * settings.token_std)
        self.blocks = nn.ModuleList([Block(width, settings.token_dim, settings.heads) for _ in range(settings.depth)])
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.to_patches = nn.ConvTranspose2d(width, settings.channels, patch, patch, bias=False)
        self.read = SharedHeads(settings.head, 3 * settings.channels)

    def planes(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Planes (P, 3, C, u S, u S) of prompts' tokens (P, L, token_dim)."""
        count, side = len(tokens), self.settings.side
        seen = None if mask is None else mask.bool()[:, None, None]
        prompt, x = unit_rms(tokens), self.tokens.expand(count, -1, -1)
        for block in self.blocks:
            x = block(x, prompt, seen)
        maps = self.norm(x).view(3 * count, side, side, -1).permute(0, 3, 1, 2)
        made: Tensor = self.to_patches(maps)
        return made.unflatten(0, (count, 3))

    def forward(
        self, pooled: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> FeatureField:
        """Objects of prompts' tokens (P, L, D'); see `Generator`. `noise` is ignored."""
        check_inputs(self, pooled, tokens, mask, noise)
        assert tokens is not None
        return FeatureField(Planes(self.planes(tokens, mask)), self.read(), len(pooled), self.radius, pooled.device)
