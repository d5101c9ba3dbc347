"""The shape of a codec around pretrained networks, and where these came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffdistill.errors import UserError

from .bitstream import HIGHEST_QUALITY


@dataclass(frozen=True)
class PretrainedSettings:
    """The shape of what is trained. The defaults are DiT-IC's, but for `levels`, `context` and `auxiliary_widths`.

    Args:
        channels: C of the code at f64, a multiple of 4.
        hyper: Z of the hyper-latent at f256.
        levels: levels of quality, from 0 to 100; 100 is a multiple of `levels` - 1.
        context: channels of the networks of the entropy model.
        analysis_widths: channels that the latent and the auxiliary features become at f32.
        auxiliary_widths: widths of the auxiliary encoder at f4, f8 and f16.
        scale_width: channels of the scale head after its enlargement.
        pooled_tokens: tokens of the condition that come from the code.
        learned_tokens: tokens of the condition that are the same for every image.
        step: "element" for rho(s) at each element, "sample" for a time for each quality.
        autoencoder_rank: rank of the adapters on the autoencoder's decoder; 0 for none.
        transformer_rank: rank of the adapters on the transformer; 0 for none.

    Raises:
        UserError: a setting is out of its range.
    """

    channels: int = 320
    hyper: int = 160
    levels: int = 6
    context: int = 320
    analysis_widths: tuple[int, int] = (128, 64)
    auxiliary_widths: tuple[int, int, int] = (64, 128, 192)
    scale_width: int = 192
    pooled_tokens: int = 48
    learned_tokens: int = 29
    step: Literal["element", "sample", "token"] = "element"
    autoencoder_rank: int = 32
    transformer_rank: int = 64

    def __post_init__(self) -> None:
        widths = (self.hyper, self.context, self.scale_width, *self.analysis_widths, *self.auxiliary_widths)
        tokens = (self.pooled_tokens, self.learned_tokens)
        if not all(isinstance(n, int) and 1 <= n <= 4096 for n in (*widths, *tokens)) or len(widths) != 8:
            raise UserError(f"the shape of the codec is {self}; its numbers must be whole, from 1 to 4096")
        if self.channels % 4 or not 4 <= self.channels <= 768:
            raise UserError(f"channels is {self.channels}; it must be a multiple of 4, from 4 to 768")
        if self.levels < 2 or HIGHEST_QUALITY % (self.levels - 1):
            raise UserError(f"levels is {self.levels}; levels - 1 must divide {HIGHEST_QUALITY}")
        if self.step == "token":
            raise UserError("step is 'token', but SANA's transformer takes one time per sample; use element or sample")
        if self.step not in ("element", "sample"):
            raise UserError(f"step is {self.step!r}; it must be element or sample")
        for name in ("autoencoder_rank", "transformer_rank"):
            if not 0 <= getattr(self, name) <= 1024:
                raise UserError(f"{name} is {getattr(self, name)}; it must be in [0, 1024], with 0 for no adapters")


@dataclass(frozen=True)
class Origin:
    """Where a pretrained network came from.

    Attributes:
        source: a folder or a hub id.
        variant: of its weight files, or None.
        digest: hash of its settings and weights, before any adapter.
    """

    source: str
    variant: str | None
    digest: str
