"""The nonlinear part of the decoder: it corrects the image that the inverse lapped transform makes of the code.

linear image --unshuffle 4--> f4 --> f8 --> f16 (+ code) --> f16 --> f8 --> f4 --> correction
                               |      |                               ^      ^
                               |      +-------------------------------+      |
                               +---------------------------------------------+
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Enlarge, convolution, modulated, residuals


class Decoder(nn.Module):
    """Linear image and code to a correction, which is zero at the start.

    Args:
        channels: C, those of the code.
        levels: levels of quality, L, each with its own modulation at f8 and f16.
        latent: channels of the narrowest layer, at f16.
        widths: at f4, f8 and f16.
    """

    def __init__(
        self, channels: int, levels: int, latent: int = 32, widths: tuple[int, int, int] = (48, 96, 160)
    ) -> None:
        super().__init__()
        f4, f8, f16 = widths
        self.in4, self.down8, self.down16 = (
            convolution(48, f4),
            convolution(f4, f8, stride=2),
            convolution(f8, f16, stride=2),
        )
        self.before4, self.before8, self.before16 = residuals(f4, 1), residuals(f8, 2), residuals(f16, 2)
        self.code = convolution(channels, f16, 1)
        self.head, self.tail = convolution(f16, latent), convolution(latent, f16)
        self.after16, self.up8, self.after8 = residuals(f16, 1), Enlarge(f16, f8), residuals(f8, 2)
        self.up4, self.after4 = Enlarge(f8, f4), residuals(f4, 2)
        self.out = convolution(f4, 48, zero=True)
        self.modulation8 = nn.Parameter(torch.zeros(levels, 2 * f8))
        self.modulation16 = nn.Parameter(torch.zeros(levels, 2 * f16))

    def forward(self, linear: Tensor, code: Tensor, quality: Tensor) -> Tensor:
        """The image.

        Args:
            linear: the inverse transform of the code, (B, 3, 16 h, 16 w), around 0.
            code: coefficients (B, C, h, w).
            quality: (B,) integers in [0, 100].

        Returns:
            (B, 3, 16 h, 16 w), `linear` with the correction.
        """
        x4 = self.before4(self.in4(F.pixel_unshuffle(linear * 2, 4).contiguous(memory_format=torch.channels_last)))
        x8 = self.before8(modulated(self.down8(x4), self.modulation8, quality))
        code = torch.asinh(code).contiguous(memory_format=torch.channels_last)
        x16 = self.before16(modulated(self.down16(x8) + self.code(code), self.modulation16, quality))
        x8 = self.after8(x8 + self.up8(self.after16(self.tail(self.head(x16)))))
        x4 = self.after4(x4 + self.up4(x8))
        return linear + F.pixel_shuffle(self.out(x4), 4).float()
