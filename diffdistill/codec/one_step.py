"""The denoiser: one step from the code as it was rounded to the code as the encoder made it.

    y, rounded --normalise--> w --> v = transformer((1 - t) w, t, condition)
    w - rho (w + v) --> y          rho: from the quality and from the scales of the entropy model

Rounding adds an error to the code. (1 - t) w is taken as a state (1 - t) w0 + t eps of the flow, in which the error is
the noise. Then v is eps - w0, and w0 = (1 - t) w - t v = w - t (w + v), so rho = t is the step of the flow.

DiT-IC (arXiv 2603.13162) calls this variance-guided reconstruction flow: where the entropy model expects large values,
rounding lost much, and the step is longer. Its released code takes a step for each element, rho = 0.4 + 0.15 s, with a
constant time. The paper takes a time for each place, and rho = t. Without the factor 1 - t the code is no state of the
flow, and a step makes it worse (docs/codec.md).

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

FIRST_TIME = 0.4  # and first step, before they are adapted; DiT-IC's step without its part by scales
NEW_STEP = 0.02  # of a transformer that is not pre-trained, whose step shrinks the code
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
        conditional: whether the transformer is conditioned on the code and the scales.

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
        self.time = nn.Parameter(torch.full((levels,), FIRST_TIME).logit())
        if settings.step in ("element", "channel"):
            self.step = nn.Parameter(torch.full((levels, channels), FIRST_TIME))
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
        time = between_levels(self.time, quality)[:, None, None, None]
        if self.settings.step == "token":
            time = time + self.of_scales(s)  # (B, 1, h, w)
        time = time.sigmoid()
        condition = torch.cat([w, s], 1) if self.settings.conditional else None
        times = time[:, 0] if self.settings.step == "token" else time[:, 0, 0, 0]
        v = self.transformer((1 - time) * w, times, condition)
        return self.restored(w - self._step(time, s, quality) * (w + v))

    def _step(self, time: Tensor, s: Tensor, quality: Tensor) -> Tensor:
        """rho, of a shape that broadcasts to (B, C, h, w)."""
        if self.settings.step in ("token", "sample"):
            return time
        step = between_levels(self.step, quality)[:, :, None, None]
        return step + self.of_scales(s) if self.settings.step == "element" else step

    def without_a_step(self) -> None:
        """Make the step zero, so that the code stays as it is.

        Raises:
            ValueError: the form has a time in place of a step.
        """
        if self.settings.kind != "transformer" or self.settings.step not in ("element", "channel"):
            raise ValueError(f"a denoiser with step {self.settings.step!r} has no step of zero")
        self.step.data.zero_()

    def with_a_step(self) -> None:
        """Begin with the step of a new denoiser where it is zero; with a short one if the transformer knows nothing."""
        new = not self.transformer.out.weight.abs().max() > 0
        if self.settings.step in ("element", "channel"):
            if not self.step.abs().max() > 0 or new:
                self.step.data.fill_(NEW_STEP if new else FIRST_TIME)
        elif new:
            self.time.data.copy_(torch.full_like(self.time, NEW_STEP).logit())

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
