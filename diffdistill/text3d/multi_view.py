"""The embedded prior of text-to-3D: a small diffusion network that denoises several views of one object together.

    x_t (B, V, 3, S, S) --patches--> f2 --> f4, attention --> f8, attention --> f4, attention --> f2 --> v
                                      ^ features modulated by words, camera, background and time ^
                                             ^ and a coarse layout, drawn from the same ^

Notable:
- where there is much noise, a view is nearly a function of words and camera alone. So these do not only scale features:
  they draw a layout, a few channels at f4, from which the network starts;
- attention runs over the places of all views of an object, so that the views agree with each other;
- the network is conditioned on the camera of each view and on the colour of the background. The condition of the
  empty prompt keeps both, so that guidance follows the words alone;
- a sample is one object, of shape (V, 3, S, S) in [-1, 1], and has one time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.diffusion import Condition
from diffdistill.errors import UserError

GROUPS, HEAD = 8, 16  # groups of a normalisation; channels of an attention head
HARMONICS = 4  # of the azimuth
LAYOUT = 16  # channels of the layout


@dataclass(frozen=True)
class MultiViewSettings:
    """The shape of the network.

    Args:
        size: side of a view in pixels, a multiple of 8.
        views: V, how many views are denoised together.
        widths: channels at f2, f4 and f8, multiples of 16.
        embedding: channels of what the blocks are modulated by.

    Raises:
        UserError: a number is out of its range.
    """

    size: int = 32
    views: int = 4
    widths: tuple[int, int, int] = (64, 96, 128)
    embedding: int = 256

    def __post_init__(self) -> None:
        if self.size % 8 or not 16 <= self.size <= 512:
            raise UserError(f"size is {self.size}; it must be a multiple of 8, from 16 to 512")
        if not 1 <= self.views <= 16:
            raise UserError(f"views is {self.views}; it must be in [1, 16]")
        if len(self.widths) != 3 or any(width % HEAD or not HEAD <= width <= 2048 for width in self.widths):
            raise UserError(f"widths is {self.widths}; it must be three multiples of {HEAD}")
        if self.embedding % 2 or not 16 <= self.embedding <= 4096:
            raise UserError(f"embedding is {self.embedding}; it must be even, from 16 to 4096")


class MultiViewUNet(nn.Module):
    """The network, with the signature of a backbone.

    Args:
        settings: the shape.
        words: size of the vocabulary.
    """

    def __init__(self, settings: MultiViewSettings, words: int) -> None:
        super().__init__()
        self.settings = settings
        inner, (a, b, c) = settings.embedding, settings.widths
        self.words = nn.Embedding(words + 1, inner, padding_idx=0)  # 0 is no word, and stays zero
        nn.init.normal_(self.words.weight, std=0.5)
        nn.init.zeros_(self.words.weight[0])
        self.time, self.camera = _two_layers(64, inner), _two_layers(2 * HARMONICS + 2 + 3, inner)
        self.of_words, self.both = nn.Linear(inner, inner), nn.Linear(inner, inner)
        self.place = nn.Parameter(torch.zeros(1, a, settings.size // 2, settings.size // 2))
        self.patches, self.out = nn.Conv2d(12, a, 3, padding=1), nn.Conv2d(a, 12, 3, padding=1)
        self.layout = nn.Linear(inner, LAYOUT * (settings.size // 4) ** 2)
        self.drawn = nn.Conv2d(LAYOUT, b, 1)
        self.down2, self.to4 = _Block(a, a, inner), nn.Conv2d(a, b, 3, 2, 1)
        self.down4, self.seen4, self.to8 = _Block(b, b, inner), _Attention(b), nn.Conv2d(b, c, 3, 2, 1)
        self.first8, self.seen8, self.second8 = _Block(c, c, inner), _Attention(c), _Block(c, c, inner)
        self.from8, self.up4, self.again4 = nn.Conv2d(c, b, 1), _Block(2 * b, b, inner), _Attention(b)
        self.from4, self.up2 = nn.Conv2d(b, a, 1), _Block(2 * a, a, inner)
        self.last = nn.GroupNorm(GROUPS, a)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """The prediction v of noisy views.

        Args:
            x_t: (B, V, 3, S, S).
            time: (B,), 0 to 999.
            cond: "words" (B, L), numbers in a vocabulary; "camera" (B, V, 2), azimuth and elevation in degrees;
                "background" (B, 3), a colour in [0, 1].

        Returns:
            (B, V, 3, S, S) float32.
        """
        batch, views = x_t.shape[:2]
        told = self._told(time, cond, views)
        x = x_t.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x2 = self.down2(self.patches(F.pixel_unshuffle(x, 2)) + self.place, told)
        side = self.settings.size // 4
        layout = self.drawn(self.layout(told).unflatten(1, (LAYOUT, side, side)))
        x4 = self.seen4(self.down4(self.to4(x2) + layout, told), views)
        x8 = self.second8(self.seen8(self.first8(self.to8(x4), told), views), told)
        x4 = self.up4(torch.cat([_doubled(self.from8(x8)), x4], 1), told)
        x2 = self.up2(torch.cat([_doubled(self.from4(self.again4(x4, views))), x2], 1), told)
        v = F.pixel_shuffle(self.out(F.silu(self.last(x2))), 2)
        return v.float().reshape(batch, views, *v.shape[1:])

    def _told(self, time: Tensor, cond: Condition, views: int) -> Tensor:
        """What the blocks are modulated by, (B V, embedding)."""
        if not isinstance(cond, dict):
            raise ValueError("the condition must be a mapping with the parts words, camera and background")
        words, camera, background = (cond[name] for name in ("words", "camera", "background"))
        assert words is not None and camera is not None and background is not None
        if camera.shape[1] != views:
            raise ValueError(f"there are {views} views and {camera.shape[1]} cameras")
        rates = torch.exp(-math.log(1e4) / 32 * torch.arange(32, device=time.device))
        angles = time.float()[:, None] * rates
        whole = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.of_words(self.words(words).sum(1))
        each = self.camera(torch.cat([of_cameras(camera), (2 * background - 1)[:, None].expand(-1, views, -1)], -1))
        return F.silu(self.both(F.silu(whole[:, None] + each))).flatten(0, 1)


def of_cameras(camera: Tensor) -> Tensor:
    """Azimuth and elevation in degrees, (..., 2), as numbers that are periodic in the azimuth: (..., 10)."""
    azimuth, elevation = camera.deg2rad().unbind(-1)
    turns = [f(k * azimuth) for k in range(1, HARMONICS + 1) for f in (torch.cos, torch.sin)]
    return torch.stack([*turns, 2 * elevation, (2 * elevation).sin()], -1)


class _Block(nn.Module):
    """A residual block whose features are scaled and shifted, before each convolution, by what the network is told."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.first, self.modulation = nn.Linear(told, 2 * inputs), nn.Linear(told, 2 * outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.first(told)[:, :, None, None].to(x.dtype).chunk(2, 1)
        inner = self.conv1(F.silu(self.norm1(x) * (1 + scale) + shift))
        scale, shift = self.modulation(told)[:, :, None, None].to(x.dtype).chunk(2, 1)
        inner = self.norm2(inner) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(inner))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Attention over the places of all views of an object."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(GROUPS, width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, views: int) -> Tensor:
        rows, width, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(rows // views, views * h * w, width)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, width // HEAD, HEAD)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).reshape(rows, h, w, width).permute(0, 3, 1, 2)


def _two_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)
