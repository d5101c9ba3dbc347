"""A small codec with random weights, for tests: every part takes part, and residuals of all sizes occur."""

from pathlib import Path

import torch
from torch import Tensor

from diffdistill.codec.network import CodecNetwork, CodecSettings
from diffdistill.codec.saved import save_codec

SETTINGS = CodecSettings(channels=16, hyper=8, levels=6, encoder_widths=(8, 8, 8), decoder_widths=(8, 8))


def network(seed: int = 0) -> CodecNetwork:
    torch.manual_seed(seed)
    made = CodecNetwork(SETTINGS, range(0, 32, 2), torch.linspace(4.0, 0.2, 16))
    for parameter in made.parameters():
        if not parameter.abs().max() > 0:
            torch.nn.init.normal_(parameter, std=0.05)
    made.latent_codec.scales.second.data.normal_(std=0.2)
    made.latent_codec.scales.offset.data.add_(torch.randn_like(made.latent_codec.scales.offset))
    return made


def save_small_codec(folder: Path) -> Path:
    save_codec(network(), folder)
    return folder


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth uint8 image with noise, (3, height, width)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    noisy = smooth + 0.05 * torch.randn(3, height, width, generator=draw)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8)
