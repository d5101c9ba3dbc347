"""The denoiser in the decoder: one step from what the code tells of the latent to the latent of the original.

    u --normalise--> w --> v = transformer(w, time, code)
    w - rho v --> u           rho: from the quality and from the scales of the entropy model

DiT-IC (arXiv 2603.13162) calls this variance-guided reconstruction flow: where the entropy model expects large values,
rounding lost much, and the step is longer. Its released code takes a step for each element, rho = 0.4 + 0.15 s, with a
constant time. The paper takes a time t for each place, and since w_t = (1 - t) w + t eps gives w = w_t - t v, rho = t.

Notable:
- both forms are here, and "sample", which has one time and one step for a quality and knows nothing of the scales;
- a step of zero is the codec without a denoiser, where a pre-trained denoiser starts. A new transformer predicts zero,
  so its step starts at 0.3: of two zeros neither could learn;
- "convolutions" in place of the transformer is the same codec without diffusion, with as many parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError

from .denoiser import PATCH, DenoisingTransformer
from .layers import between_levels, convolution, residuals

TIMES = (0.4, 0.05)  # of the lowest and of the highest quality, at the start
NEW_STEP = 0.3  # of a transformer that predicts zero
MIDDLE = 20.0  # a scale index of 0.8 of a rounding step


@dataclass(frozen=True)
class DenoiserSettings:
    """The denoiser in the decoder.

    Args:
        kind: "transformer", or "convolutions" for residual blocks with about as many parameters.
        width: of a token.
        depth: number of blocks of the transformer.
        heads: number of attention heads; `width` is a multiple of it.
        step: "element" for a step for each element, "token" for a time for each patch, "sample" for one a quality.
        conditional: whether the transformer is told the code.

    Raises:
        UserError: a setting is out of its range.
    """

    kind: Literal["transformer", "convolutions"] = "transformer"
    width: int = 144
    depth: int = 3
    heads: int = 4
    step: Literal["element", "token", "sample"] = "element"
    conditional: bool = True

    def __post_init__(self) -> None:
        for name, valid in (
            ("kind", ("transformer", "convolutions")),
            ("step", ("element", "token", "sample")),
            ("conditional", (True, False)),
        ):
            if getattr(self, name) not in valid:
                raise UserError(f"denoiser.{name} is {getattr(self, name)!r}; it must be one of {valid}")
        numbers = (self.width, self.depth, self.heads)
        if not all(isinstance(n, int) and 1 <= n <= 4096 for n in numbers) or self.width % (2 * self.heads):
            raise UserError(
                f"denoiser.width is {self.width}, depth {self.depth}, heads {self.heads}; they must be whole numbers "
                "from 1, and width a multiple of 2 heads"
            )


class OneStep(nn.Module):
    """u of the decoder to u nearer to that of the original.

    Args:
        settings: the shape.
        latent: channels of u.
        code: channels of the code.
        levels: levels of quality.
    """

    mean: Tensor
    rms: Tensor

    def __init__(self, settings: DenoiserSettings, latent: int, code: int, levels: int) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("rms", torch.ones(latent))
        if settings.kind == "convolutions":
            width = settings.width // 2
            count = max(1, round(transformer_parameters(settings, latent, code) / (18 * width**2)))
            self.blocks = nn.Sequential(
                convolution(latent, width), residuals(width, count), convolution(width, latent, zero=True)
            )
            self.code = convolution(code, latent, 1, zero=True)
            return
        self.transformer = DenoisingTransformer(latent, code, settings.width, settings.depth, settings.heads)
        times = torch.linspace(TIMES[0], TIMES[1], levels)
        self.time = nn.Parameter(times.logit())  # (L,)
        if settings.step == "element":
            self.step = nn.Parameter(torch.full((levels, latent), NEW_STEP))
            self.of_scales = convolution(code, latent, 1, zero=True)
        elif settings.step == "token":
            self.of_scales = convolution(code, 1, 1, zero=True)

    def forward(self, u: Tensor, code: Tensor, indexes: Tensor, quality: Tensor) -> Tensor:
        """The latent after the step.

        Args:
            u: (B, latent, h, w); h and w are even.
            code: coefficients (B, code, h, w).
            indexes: scale indexes of the entropy model, (B, code, h, w).
            quality: (B,) integers in [0, 100].
        """
        w, s = self.normalised(u), (indexes - MIDDLE) / MIDDLE
        if self.settings.kind == "convolutions":
            inner = w + self.code(torch.asinh(code)) if self.settings.conditional else w
            return self.restored(w + self.blocks(inner))
        time = between_levels(self.time, quality)
        told = code if self.settings.conditional else None
        if self.settings.step == "element":
            rho = between_levels(self.step, quality)[:, :, None, None] + self.of_scales(s)
            return self.restored(w - rho * self.transformer(w, time.sigmoid(), told))
        if self.settings.step == "token":
            mean = F.avg_pool2d(self.of_scales(s), PATCH)  # (B, 1, h/2, w/2)
            times = torch.sigmoid(time[:, None, None, None] + mean)
            rho = times.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
            return self.restored(w - rho * self.transformer(w, times[:, 0], told))
        t = time.sigmoid()
        return self.restored(w - t[:, None, None, None] * self.transformer(w, t, told))

    def start_from_flow(self) -> None:
        """Begin with a step of zero, where the transformer is pre-trained and the form of the step allows it."""
        if self.settings.kind == "transformer" and self.settings.step == "element":
            self.step.data.zero_()

    def calibrate(self, u: Tensor) -> None:
        """Take the mean and the root mean square of latents (B, latent, h, w), by channel."""
        self.mean = u.detach().mean((0, 2, 3))
        self.rms = u.detach().std((0, 2, 3)).clamp_min(1e-4)

    def normalised(self, u: Tensor) -> Tensor:
        """w, with mean 0 and variance 1 over photographs in each channel."""
        return (u - self.mean[:, None, None]) / self.rms[:, None, None]

    def restored(self, w: Tensor) -> Tensor:
        """The way back."""
        return w * self.rms[:, None, None] + self.mean[:, None, None]


def transformer_parameters(settings: DenoiserSettings, latent: int, code: int) -> int:
    """Number of parameters of the transformer of these settings."""
    with torch.device("meta"):
        made = DenoisingTransformer(latent, code, settings.width, settings.depth, settings.heads)
    return sum(parameter.numel() for parameter in made.parameters())
