"""The new parts of the codec around a pretrained autoencoder and a pretrained transformer, as in DiT-IC.

    latent y0 (f32) ------------------conv3--> 128 \\
    auxiliary features (f16) --conv3, stride 2--> 64 > 192 --2 blocks, conv3 stride 2, 2 blocks--> y (320, f64)

    y --blocks, enlarge, conv3--> mean, residual (32, f32), condition (320, f32);   log scales of y --> s (32, f32)
    condition --pooled to 48 tokens, 29 learned ones--> 77 tokens --3 layers--> what the transformer reads as a caption

Widths and numbers of parameters are those of the released networks of DiT-IC (arXiv 2603.13162); docs/codec.md has both
side by side. The released auxiliary features come from a pretrained ELIC transform; here a small network learns them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import Encoder
from .layers import convolution


def swish4(x: Tensor) -> Tensor:
    """x sigmoid(4 x), an activation of DCVC-RT (arXiv 2502.20762)."""
    return x * torch.sigmoid(4 * x)


class DepthwiseBlock(nn.Module):
    """Two residual parts: u = x + b(depthwise(swish4(a(x)))); u + d(halves of swish4(c(u)) added). It starts as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = convolution(width, width, 1), convolution(width, width, 1, zero=True)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.c, self.d = convolution(width, 4 * width, 1), convolution(2 * width, width, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        u = x + self.b(self.depthwise(swish4(self.a(x))))
        first, second = swish4(self.c(u)).chunk(2, 1)
        made: Tensor = u + self.d(first + second)
        return made


class Head(nn.Module):
    """A map of the code at f64 to one at f32: blocks, twofold enlargement, one convolution.

    Args:
        inputs: channels of the code.
        outputs: channels of the result.
        blocks: number of blocks before the enlargement.
        inner: channels after the enlargement.
        zero: whether the result is zero at the start.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, inner: int, zero: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DepthwiseBlock(inputs) for _ in range(blocks)))
        self.before, self.enlarge = convolution(inputs, inputs), convolution(inputs, 4 * inner, 1)
        self.out = convolution(inner, outputs, zero=zero)

    def forward(self, y: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, 2 h, 2 w)."""
        large = F.pixel_shuffle(self.enlarge(F.gelu(self.before(self.blocks(y)))), 2)
        made: Tensor = self.out(large)
        return made


class Analysis(nn.Module):
    """The latent and features of the image to the code.

    Args:
        latent: channels of the autoencoder's latent.
        channels: C of the code, and of the auxiliary features.
        widths: channels that the latent and the features become at f32.
        auxiliary: widths of the auxiliary encoder at f4, f8 and f16.
    """

    def __init__(
        self,
        latent: int,
        channels: int,
        widths: tuple[int, int] = (128, 64),
        auxiliary: tuple[int, int, int] = (64, 128, 192),
    ) -> None:
        super().__init__()
        both = sum(widths)
        self.auxiliary = Encoder(channels, auxiliary)
        self.of_latent = convolution(latent, widths[0])
        self.of_features = convolution(channels, widths[1], stride=2)
        self.before = nn.Sequential(DepthwiseBlock(both), DepthwiseBlock(both))
        self.down = convolution(both, channels, stride=2)
        self.after = nn.Sequential(DepthwiseBlock(channels), DepthwiseBlock(channels))

    def forward(self, latent: Tensor, images: Tensor) -> Tensor:
        """The code.

        Args:
            latent: y0 (B, latent, H/32, W/32).
            images: (B, 3, H, W) in [-0.5, 0.5].

        Returns:
            (B, C, H/64, W/64).
        """
        features = self.of_features(self.auxiliary(images))
        made: Tensor = self.after(self.down(self.before(torch.cat([self.of_latent(latent), features], 1))))
        return made.float()

    @torch.no_grad()
    def calibrate(self, y: Tensor) -> None:
        """Scale the last convolution of a new network so that the code y (B, C, h, w), its result, has variance 1."""
        mean, deviation = y.mean((0, 2, 3)), y.std((0, 2, 3)).clamp_min(1e-4)
        assert self.down.bias is not None
        self.down.weight /= deviation[:, None, None, None]
        self.down.bias.copy_((self.down.bias - mean) / deviation)


class Conditioner(nn.Module):
    """The map of the condition to tokens of the width of the transformer's captions.

    Args:
        channels: of the map.
        caption: width of a caption's token.
        pooled: tokens that the map is pooled to, row by row.
        learned: tokens that are the same for every image.
    """

    def __init__(self, channels: int, caption: int, pooled: int = 48, learned: int = 29) -> None:
        super().__init__()
        self.pooled = pooled
        self.learned = nn.Parameter(0.02 * torch.randn(learned, channels))
        self.layers = nn.Sequential(
            nn.Linear(channels, caption), nn.SiLU(), nn.Linear(caption, caption), nn.SiLU(), nn.Linear(caption, caption)
        )

    def forward(self, condition: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, pooled + learned, caption)."""
        tokens = F.adaptive_avg_pool1d(condition.flatten(2), self.pooled).transpose(1, 2)
        tokens = torch.cat([tokens, self.learned.to(tokens.dtype).expand(len(tokens), -1, -1)], 1)
        made: Tensor = self.layers(tokens)
        return made
