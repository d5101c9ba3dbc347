"""The denoiser: one step from the code as it was rounded to the code as the encoder made it.

    y, rounded --normalise--> w --> v = transformer(w, time, condition)
    w - rho v --> y          rho: from the quality and from the scales of the entropy model

DiT-IC (arXiv 2603.13162) calls this variance-guided reconstruction flow: where the entropy model expects large values,
rounding lost much, and the step is longer. Its released code takes a step for each element, rho = 0.4 + 0.15 s, with a
constant time. The paper takes a time t for each place, and since w_t = (1 - t) w + t eps gives w = w_t - t v, rho = t.

Notable:
- the denoiser works on the code itself, since that is what rounding spoils. An earlier one worked on a latent inside of
  the decoder; the decoder's skip connections carried everything, and even the original's latent changed nothing;
- "element" and "token" are the two forms. "channel" and "sample" are the same without the scales;
- "convolutions" in place of the transformer is the same codec without diffusion, with about as many parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .denoiser import DenoisingTransformer
from .layers import between_levels, convolution, modulated, residuals

TIMES = (0.4, 0.05)  # that the transformer is told at the lowest and the highest quality, at the start
FIRST_STEP = 0.05  # of all forms, before they are adapted
MIDDLE = 20.0  # a scale index of 0.8 of a rounding step


@dataclass(frozen=True)
class DenoiserSettings:
    """The denoiser.

    Args:
        kind: "transformer", or "convolutions" for residual blocks with about as many parameters.
        width: of a token.
        depth: number of blocks of the transformer.
        heads: number of attention heads; `width` is a multiple of twice as many.
        step: "element" for a step for each element, by quality, channel and scale; "channel" for the same without the
            scale; "token" for a time for each place, by quality and scales; "sample" for a time for each quality.
        conditional: whether the transformer is told the code and the scales, beside the latent that it denoises.

    Raises:
        UserError: a setting is out of its range.
    """

    kind: Literal["transformer", "convolutions"] = "transformer"
    width: int = 192
    depth: int = 3
    heads: int = 4
    step: Literal["element", "channel", "token", "sample"] = "element"
    conditional: bool = True

    def __post_init__(self) -> None:
        for name, valid in (
            ("kind", ("transformer", "convolutions")),
            ("step", ("element", "channel", "token", "sample")),
            ("conditional", (True, False)),
        ):
            if getattr(self, name) not in valid:
                raise UserError(f"denoiser.{name} is {getattr(self, name)!r}; it must be one of {valid}")
        numbers = (self.width, self.depth, self.heads)
        most = (1024, 64, 64)
        if not all(isinstance(n, int) and 1 <= n <= m for n, m in zip(numbers, most, strict=True)) or (
            self.width % (2 * self.heads)
        ):
            raise UserError(
                f"denoiser.width is {self.width}, depth {self.depth}, heads {self.heads}; they must be whole numbers "
                f"from 1 to {most}, and width a multiple of 2 heads"
            )


class OneStep(nn.Module):
    """A rounded code to one nearer to that of the encoder.

    Args:
        settings: the shape.
        channels: of the code, C.
        levels: levels of quality, L.
    """

    mean: Tensor
    rms: Tensor

    def __init__(self, settings: DenoiserSettings, channels: int, levels: int) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("rms", torch.ones(channels))
        if settings.kind == "convolutions":
            width = settings.width // 2
            left = transformer_parameters(settings, channels) - 27 * channels * width
            count = max(1, round(left / (18 * width**2)))
            self.into, self.blocks = convolution(2 * channels, width), residuals(width, count)
            self.modulation = nn.Parameter(torch.zeros(levels, 2 * width))
            self.out = convolution(width, channels, zero=True)
            return
        self.transformer = DenoisingTransformer(channels, 2 * channels, settings.width, settings.depth, settings.heads)
        if settings.step in ("element", "channel"):
            self.time = nn.Parameter(torch.linspace(TIMES[0], TIMES[1], levels).logit())  # (L,)
            self.step = nn.Parameter(torch.full((levels, channels), FIRST_STEP))
        else:
            self.time = nn.Parameter(torch.full((levels,), FIRST_STEP).logit())
        if settings.step in ("element", "token"):
            self.of_scales = convolution(channels, channels if settings.step == "element" else 1, 1, zero=True)

    def forward(self, y: Tensor, indexes: Tensor, quality: Tensor) -> Tensor:
        """The code after the step.

        Args:
            y: coefficients (B, C, h, w) as the decoder has them.
            indexes: scale indexes of the entropy model, (B, C, h, w).
            quality: (B,) integers in [0, 100].
        """
        w, s = self.normalised(y), of_indexes(indexes)
        if self.settings.kind == "convolutions":
            inner = self.into(torch.cat([w, s], 1))
            return self.restored(w + self.out(self.blocks(modulated(inner, self.modulation, quality))))
        time = between_levels(self.time, quality)
        told = torch.cat([w, s], 1) if self.settings.conditional else None
        if self.settings.step in ("element", "channel"):
            rho = between_levels(self.step, quality)[:, :, None, None]
            if self.settings.step == "element":
                rho = rho + self.of_scales(s)
            return self.restored(w - rho * self.transformer(w, time.sigmoid(), told))
        if self.settings.step == "token":
            times = torch.sigmoid(time[:, None, None, None] + self.of_scales(s))  # (B, 1, h, w)
            return self.restored(w - times * self.transformer(w, times[:, 0], told))
        t = time.sigmoid()
        return self.restored(w - t[:, None, None, None] * self.transformer(w, t, told))

    def without_a_step(self) -> None:
        """Make the step zero, so that the code stays as it is.

        Raises:
            ValueError: the form has a time in place of a step.
        """
        if self.settings.kind != "transformer" or self.settings.step not in ("element", "channel"):
            raise ValueError(f"a denoiser with step {self.settings.step!r} has no step of zero")
        self.step.data.zero_()

    def with_a_step(self) -> None:
        """Begin with the step of a new denoiser where it is zero, so that the transformer gets a gradient."""
        if self.settings.step in ("element", "channel") and not self.step.abs().max() > 0:
            self.step.data.fill_(FIRST_STEP)

    def calibrate(self, y: Tensor) -> None:
        """Take the mean and the standard deviation of codes (B, C, h, w), by channel."""
        self.mean = y.detach().mean((0, 2, 3))
        self.rms = y.detach().std((0, 2, 3)).clamp_min(1e-4)

    def normalised(self, y: Tensor) -> Tensor:
        """w, with mean 0 and variance 1 over photographs in each channel."""
        return (y - self.mean[:, None, None]) / self.rms[:, None, None]

    def restored(self, w: Tensor) -> Tensor:
        """The way back, in float32."""
        return w.float() * self.rms[:, None, None] + self.mean[:, None, None]


def of_indexes(indexes: Tensor) -> Tensor:
    """Scale indexes (B, C, h, w) as numbers of about 1: logarithms of the scale, and 0 for 0.8 of a rounding step."""
    return (indexes - MIDDLE) / MIDDLE


def transformer_parameters(settings: DenoiserSettings, channels: int) -> int:
    """Number of parameters of the transformer of these settings."""
    with torch.device("meta"):
        made = DenoisingTransformer(channels, 2 * channels, settings.width, settings.depth, settings.heads)
    return sum(parameter.numel() for parameter in made.parameters())
