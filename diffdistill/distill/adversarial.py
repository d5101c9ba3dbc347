"""The adversarial term that methods with a fake score may add to score distillation, as in DMD2.

The discriminator is a small head on features of the fake score (its bottleneck), so it costs only a few layers more.
Losses are the non-saturating ones (arXiv 1406.2661, section 3) written with softplus:

    generator       softplus(-D(fake))                       DMD2 adds it to the student's loss times 3e-3
    discriminator   softplus(D(fake)) + softplus(-D(real))   and to the fake score's loss times 1e-2
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def generator_loss(logits_fake: Tensor) -> Tensor:
    """-log of the probability that generated samples are real, mean over all logits (any shape).

    >>> round(generator_loss(torch.zeros(4, 1)).item(), 4)
    0.6931
    """
    return functional.softplus(-logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of classifying real and generated samples, mean over all logits of each (any shapes).

    >>> round(discriminator_loss(torch.zeros(4, 1), torch.zeros(4, 1)).item(), 4)
    1.3863
    """
    return functional.softplus(logits_fake).mean() + functional.softplus(-logits_real).mean()


class DiscriminatorHead(nn.Module):
    """A head from features of a score model to logits.

        (B, C, H, W) -> 3x3 conv -> norm, SiLU -> 3x3 conv, stride 2 -> norm, SiLU
                     -> 1x1 conv -> (B, 1, h, w) -> mean -> (B, 1)

    A group of the normalisation has at least four channels, so that a 1 x 1 map does not become zero.

    Args:
        channels: C of the features.
        hidden: width of the head, a multiple of 4.
        patches: return a map of logits (B, 1, ceil(H / 2), ceil(W / 2)), one per patch, rather than their mean
            (B, 1).

    Raises:
        ValueError: hidden is not a positive multiple of 4.
    """

    def __init__(self, channels: int, hidden: int = 128, patches: bool = False) -> None:
        super().__init__()
        if hidden < 4 or hidden % 4:
            raise ValueError(f"hidden is {hidden}; it must be a positive multiple of 4")
        groups = math.gcd(32, hidden // 4)
        self.patches = patches
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.GroupNorm(groups, hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
            nn.GroupNorm(groups, hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, 1), or (B, 1, h, w) with `patches`, from features (B, C, H, W)."""
        logits: Tensor = self.layers(features)
        return logits if self.patches else torch.mean(logits, dim=(2, 3))
