"""The nonlinear part of the encoder, which is added to the lapped transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import convolution, residuals


class Encoder(nn.Module):
    """image (3, H, W) --unshuffle 4--> f4 --> f8 --> f16 --> (C, H/16, W/16); zero at the start.

    Args:
        channels: C, those of the coefficients.
        widths: at f4, f8 and f16.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        f4, f8, f16 = widths
        self.network = nn.Sequential(
            convolution(48, f4),
            residuals(f4, 1),
            convolution(f4, f8, stride=2),
            residuals(f8, 2),
            convolution(f8, f16, stride=2),
            residuals(f16, 2),
            convolution(f16, channels, 1, zero=True),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-0.5, 0.5] to what is added to their coefficients."""
        x = F.pixel_unshuffle(images * 2, 4).contiguous(memory_format=torch.channels_last)
        made: Tensor = self.network(x)
        return made
