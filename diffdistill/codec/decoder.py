"""The nonlinear part of the decoder: it corrects the image that the inverse lapped transform makes of the code.

    linear image --unshuffle 4--> f4 --> f8 --> f4 --> correction
                                   |             ^
                                   +-------------+

There is no level at f16 and no second way in for the code: a decoder that had them did not use them. What rounding
spoiled over larger distances is the denoiser's part (`one_step`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Enlarge, convolution, modulated, residuals


class Decoder(nn.Module):
    """Linear image to a correction, which is zero at the start.

    Args:
        levels: levels of quality, L, each with its own modulation at f8.
        widths: at f4 and f8.
    """

    def __init__(self, levels: int, widths: tuple[int, int] = (48, 96)) -> None:
        super().__init__()
        f4, f8 = widths
        self.in4, self.down8 = convolution(48, f4), convolution(f4, f8, stride=2)
        self.before4, self.before8 = residuals(f4, 1), residuals(f8, 2)
        self.after8, self.up4, self.after4 = residuals(f8, 2), Enlarge(f8, f4), residuals(f4, 2)
        self.out = convolution(f4, 48, zero=True)
        self.modulation8 = nn.Parameter(torch.zeros(levels, 2 * f8))

    def forward(self, linear: Tensor, quality: Tensor) -> Tensor:
        """The image.

        Args:
            linear: the inverse transform of the code, (B, 3, H, W), around 0; H and W are multiples of 8.
            quality: (B,) integers in [0, 100].

        Returns:
            (B, 3, H, W), `linear` with the correction.
        """
        x4 = self.before4(self.in4(F.pixel_unshuffle(linear * 2, 4).contiguous(memory_format=torch.channels_last)))
        x8 = self.after8(self.before8(modulated(self.down8(x4), self.modulation8, quality)))
        x4 = self.after4(x4 + self.up4(x8))
        return linear + F.pixel_shuffle(self.out(x4), 4).float()
