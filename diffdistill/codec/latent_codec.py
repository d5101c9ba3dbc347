"""The entropy model of the code: how many bits its integers take, and the integers themselves.

    y (C, f16) * gain(quality) --hyper-encoder--> z, rounded (f64) --ScaleNetwork--> index of a Gaussian table
                               \\-- minus mean, rounded --> r        --hyper-decoder--> h --context, 4 steps--> means

Files hold z and r. Where the index is 0, the narrowest table, r is taken to be 0 and is not coded. Most values are
such, and few of them would round to another integer. The tables of r depend on z alone, through integers, so r is read
without any floating-point number. The means depend on z and on the code so far: each of four steps settles one position
of every 2x2 square in each of four groups of channels, and sees what was settled before (the quadrant context of
DCVC-HEM). A last small network adds what rounding lost on average (latent residual prediction).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .bitstream import HIGHEST_QUALITY
from .layers import Enlarge, activate, between_levels, convolution, round_through, straight_through
from .scales import Z_MOST, ScaleNetwork, scale_of

ORDERS = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))  # position of each group of channels in each step
LEAST_PROBABILITY = 1e-9


class Coded(NamedTuple):
    """What the entropy model makes of a code.

    Attributes:
        y: the code as the decoder has it, on the scale of the coefficients, (B, C, h, w).
        y_bits: (B,), bits of r.
        z_bits: (B,), bits of z.
        indexes: (B, C, h, w), scale indexes.
    """

    y: Tensor
    y_bits: Tensor
    z_bits: Tensor
    indexes: Tensor


def quadrants(channels: int, height: int, width: int, device: torch.device) -> list[Tensor]:
    """Four masks (1, C, h, w) that add up to one: what each step settles."""
    masks = []
    for order in ORDERS:
        mask = torch.zeros(4, height, width, device=device)
        for group, position in enumerate(order):
            mask[group, position // 2 :: 2, position % 2 :: 2] = 1
        masks.append(mask.repeat_interleave(channels // 4, 0)[None])
    return masks


class HyperPrior(nn.Module):
    """The distribution of each channel of z at each level of quality: a mixture of three logistic distributions."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.linspace(-1.5, 1.5, 3).repeat(levels, channels, 1))
        self.log_scales = nn.Parameter(torch.tensor([0.3, -0.5, 0.3]).repeat(levels, channels, 1))
        self.weights = nn.Parameter(torch.zeros(levels, channels, 3))

    def probabilities(self, z: Tensor, level: Tensor, fixed: bool = False) -> Tensor:
        """The probability of each value.

        Args:
            z: (B, Z, h, w).
            level: (B,), the level of each sample; see `nearest_level`.
            fixed: give the parameters no gradient.

        Returns:
            (B, Z, h, w).
        """
        own = [x.detach() if fixed else x for x in (self.means, self.log_scales, self.weights)]
        means, log_scales, weights = (x[level][:, :, None, None] for x in own)  # (B, Z, 1, 1, 3)
        away = (z[..., None] - means).abs()  # the tail below the mean, where sigmoids do not cancel
        upper, lower = (torch.sigmoid((half - away) / log_scales.exp()) for half in (0.5, -0.5))
        return ((upper - lower) * weights.softmax(-1)).sum(-1)


class LatentCodec(nn.Module):
    """Code to bits and back.

    Args:
        channels: C, a multiple of 4.
        scales: (C,) root mean squares of the coefficients, for the start.
        steps: (L,) quantisation steps of the levels of quality, coarsest first, for the start.
        hyper: channels of z.
        width: channels of the networks between.
    """

    def __init__(self, channels: int, scales: Tensor, steps: Tensor, hyper: int = 48, width: int = 128) -> None:
        super().__init__()
        levels = len(steps)
        gains = -steps.log()
        self.gain = nn.Parameter(gains[:, None].repeat(1, channels))  # natural logarithm
        self.inverse_gain = nn.Parameter(torch.zeros(levels, channels))  # what the decoder's differs by
        self.analysis = nn.ModuleList(
            [convolution(2 * channels, width), convolution(width, width, stride=2), convolution(width, hyper, stride=2)]
        )
        self.hyper_gain = nn.Parameter(torch.linspace(-0.7, 0.0, levels)[:, None].repeat(1, hyper))  # logarithm
        self.prior = HyperPrior(levels, hyper)
        self.scales = ScaleNetwork(hyper, channels, levels, scales, gains)
        self.synthesis = nn.ModuleList([Enlarge(hyper, width), Enlarge(width, width)])
        self.of_quality = nn.Parameter(torch.zeros(levels, width))
        inner = 160
        self.context = convolution(width + channels, inner)
        self.of_step = nn.Parameter(torch.zeros(4, inner))
        self.mean = nn.ModuleList([convolution(inner, inner, 1), convolution(inner, channels, 1, zero=True)])
        self.lost = nn.ModuleList(
            [convolution(inner + channels, channels, 1), convolution(channels, channels, 1, zero=True)]
        )

    def scaled(self, y: Tensor, quality: Tensor) -> Tensor:
        """Coefficients on the scale on which they are rounded."""
        return y * between_levels(self.gain, quality).exp()[:, :, None, None]

    def unscaled(self, y: Tensor, quality: Tensor) -> Tensor:
        """The way back, whose gains are learned too."""
        log_gain = between_levels(self.inverse_gain - self.gain, quality)
        return y * log_gain.exp()[:, :, None, None]

    def hyper_latent(self, y: Tensor, quality: Tensor) -> Tensor:
        """z (B, Z, h/4, w/4) of a scaled code, before rounding; low qualities can afford few bits of it."""
        a = torch.asinh(y)
        first, second, third = self.analysis
        z: Tensor = third(activate(second(activate(first(torch.cat([a, a.abs()], 1))))))
        return z.float() * between_levels(self.hyper_gain, quality).exp()[:, :, None, None]

    @torch.no_grad()
    def calibrate(self, y: Tensor, wanted: float = 2.0) -> None:
        """Scale the hyper-encoder's last layer so that z of coefficients y (B, C, h, w) has this rms at quality 50.

        A narrower z would be rounded to zero, and would never be used.
        """
        quality = torch.full((len(y),), 50.0, device=y.device)
        last = self.analysis[2]
        assert isinstance(last, nn.Conv2d)
        last.weight *= wanted / self.hyper_latent(self.scaled(y, quality), quality).square().mean().sqrt()

    def features(self, z: Tensor, quality: Tensor) -> Tensor:
        """What the means know of z: (B, width, h, w)."""
        first, second = self.synthesis
        h = activate(second(activate(first(z))))
        return h + between_levels(self.of_quality, quality)[:, :, None, None]

    def settle(
        self, features: Tensor, r: Tensor | None, y: Tensor | None, coded: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the four steps, from the code (encoder) or from the residuals (decoder).

        Args:
            features: of z, (B, width, h, w).
            r: residuals (B, C, h, w) to decode; None to encode.
            y: the scaled code (B, C, h, w) to encode; None to decode.
            coded: with y, and only then, where residuals are coded, (B, C, h, w): 1, or 0 where they are taken to be 0.

        Returns:
            The code as the decoder has it, scaled; and its means.
        """
        given = y if y is not None else r
        assert given is not None and (y is None) == (coded is None)
        settled, means = torch.zeros_like(given), torch.zeros_like(given)
        for step, mask in enumerate(quadrants(given.shape[1], given.shape[2], given.shape[3], given.device)):
            inner = self.context_of(features, settled, step)
            change, mean = self.settle_step(inner, given, mask, coded)
            settled = settled + mask * change
            means = means + mask * mean
        return settled, means

    def context_of(self, features: Tensor, settled: Tensor, step: int) -> Tensor:
        """What a step knows: (B, inner, h, w) of the features and the code so far; it sees one neighbour far."""
        inner: Tensor = self.context(torch.cat([features, torch.asinh(settled).to(features.dtype)], 1))
        return activate(inner + self.of_step[step][:, None, None])

    def settle_step(self, inner: Tensor, given: Tensor, mask: Tensor, coded: Tensor | None) -> tuple[Tensor, Tensor]:
        """What a step adds to the code where its mask is 1, and the means; each position by itself.

        Args:
            inner: of `context_of`.
            given: the scaled code (B, C, h, w) to encode, or residuals to decode.
            mask: of the step, (1, C, h, w).
            coded: where residuals of the code are coded; None if `given` are residuals.
        """
        mean: Tensor = self.mean[1](activate(self.mean[0](inner))).float()
        residual = given
        if coded is not None:
            residual = straight_through(given - mean, (given - mean).detach().round() * coded)
        lost = self.lost[0](torch.cat([inner, torch.asinh(residual * mask).to(inner.dtype)], 1))
        lost = 0.5 * torch.tanh(self.lost[1](activate(lost)).float())
        return residual + mean + lost, mean

    def forward(self, y: Tensor, quality: Tensor, noise: Tensor, z_noise: Tensor) -> Coded:
        """Train: the bits of rounded values, and values as the decoder has them.

        Rounded values train the distributions. The gradient of the values themselves is that with noise in place of
        rounding.

        Args:
            y: coefficients (B, C, h, w); h and w are multiples of 4.
            quality: (B,) integers in [0, 100].
            noise: (B, C, h, w), uniform in [-0.5, 0.5).
            z_noise: (B, Z, h/4, w/4), the same.
        """
        scaled, level = self.scaled(y, quality), nearest_level(quality, len(self.gain))
        z = self.hyper_latent(scaled, quality).clamp(-Z_MOST, Z_MOST)
        z_bits = _both(
            _bits(self.prior.probabilities(z.detach().round(), level)),
            _bits(self.prior.probabilities(z + z_noise, level, fixed=True)),
        )
        rounded = round_through(z)
        indexes = self.scales(rounded, quality)
        coded = (indexes.detach() > 0).float()
        settled, means = self.settle(self.features(rounded, quality), None, scaled, coded)
        residual, scale = scaled - means, scale_of(indexes)
        y_bits = _both(
            _bits(as_in_tables(gaussian_probabilities(residual.detach().round(), scale), scale), coded),
            _bits(as_in_tables(gaussian_probabilities(residual + noise, scale.detach()), scale.detach())),
        )
        return Coded(self.unscaled(settled, quality), y_bits, z_bits, indexes)

    def rounded(self, y: Tensor, quality: Tensor) -> Coded:
        """What a file would hold: as `forward`, with rounding in place of noise."""
        scaled = self.scaled(y, quality)
        z = self.hyper_latent(scaled, quality).clamp(-Z_MOST, Z_MOST).round()
        z_bits = _bits(self.prior.probabilities(z, nearest_level(quality, len(self.gain))))
        indexes = self.scales(z, quality)
        coded = (indexes > 0).float()
        settled, means = self.settle(self.features(z, quality), None, scaled, coded)
        scale = scale_of(indexes)
        y_bits = _bits(as_in_tables(gaussian_probabilities((scaled - means).round(), scale), scale), coded)
        return Coded(self.unscaled(settled, quality), y_bits, z_bits, indexes)


def gaussian_probabilities(x: Tensor, scale: Tensor) -> Tensor:
    """The probability of the interval of length 1 around x, of a Gaussian with mean 0."""
    x, root = x.abs(), 1 / (scale * math.sqrt(2))
    return 0.5 * (torch.erfc((x - 0.5) * root) - torch.erfc((x + 0.5) * root))


def as_in_tables(probabilities: Tensor, scale: Tensor) -> Tensor:
    """Probabilities as integer tables hold them, where each of the values in a table has at least 1 / 65,536.

    A table of `tables.gaussian_table` has about 18 scale + 9 values. A value in it costs 16 bits at most, and not as
    many as the tail of a Gaussian says. Values beyond it, which take 16 bits more, are too rare to be counted.
    """
    share = (18 * scale.detach() + 9) / (1 << 16)
    return probabilities * (1 - share) + 2.0**-16


def nearest_level(quality: Tensor, levels: int) -> Tensor:
    """The level that is nearest to a quality, the upper one halfway: (quality + span // 2) // span.

    >>> nearest_level(torch.tensor([0.0, 9.0, 10.0, 100.0]), 6).tolist()
    [0, 0, 1, 5]
    """
    span = HIGHEST_QUALITY // (levels - 1)
    return (quality.long() + span // 2) // span


def _both(value: Tensor, proxy: Tensor) -> Tensor:
    """The value, with the gradients of both."""
    return value + proxy - proxy.detach()


def _bits(probabilities: Tensor, coded: Tensor | None = None) -> Tensor:
    """(B,) bits; values that are not coded add none, but keep their gradient, by which a scale can rise again."""
    bits = -(probabilities + LEAST_PROBABILITY).log2()
    return (bits if coded is None else straight_through(bits, bits.detach() * coded)).flatten(1).sum(1)
