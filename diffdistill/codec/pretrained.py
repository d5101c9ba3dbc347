"""The codec with pretrained networks: a deep-compression autoencoder and SANA's transformer, run once (DiT-IC).

    image --frozen encoder of the autoencoder--> y0 (32, f32) \\
    image --auxiliary encoder--> features (f16) ---------------> y (320, f64) --LatentCodec--> file

    file --> y, scale indexes --heads--> mean, residual, condition, s
    v = transformer(mean, t, condition);   x0 = mean - sigma rho(s) v + residual;   image = decoder(x0 / scaling_factor)

The autoencoder's decoder and the transformer are frozen but for LoRA adapters; all else is trained from the start. The
source is DiT-IC (arXiv 2603.13162, section 3) and, where they differ, its released code.

Notable:
- the map s of the step's length comes from the integers of the scale network, not from a network's own scales, since
  the entropy decoder needs integers. A head projects their logarithms;
- one network covers all qualities, through the gains of `LatentCodec`. DiT-IC trains one network a rate;
- "sample" is a time for each quality, which is the step too. A time for each token, as in the paper's text, needs
  another transformer: `SanaTransformer2DModel` takes one time per sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .adapters import AUTOENCODER_LAYERS, TRANSFORMER_LAYERS, add_adapters, is_adapter
from .alignments import released_step
from .latent_codec import LatentCodec
from .layers import between_levels
from .network import level_steps
from .pretrained_parts import Analysis, Conditioner, Head
from .pretrained_settings import Origin, PretrainedSettings
from .scales import LOG_STEP, SMALLEST

STRIDE = 64  # pixels a position of the code
MULTIPLE = 256  # pixels a position of the hyper-latent
FIRST_TIMES = (0.4, 0.05)  # of `step: sample`, at the lowest and the highest quality, at the start
COARSER = 3.0  # quantisation steps beside those of the small codec: a position stands for 16 times as many pixels
TIME, SIGMA = 999.0, 0.9997  # of one step of flow matching with a shift of 3, as the released code takes it


class PretrainedReconstruction(NamedTuple):
    """What training sees of images: a `Reconstruction`, and what its latent and its condition are aligned with.

    Attributes:
        images: (B, 3, H, W) in about [0, 1], not clamped.
        latent: x0 (B, K, H/32, W/32), after the step.
        y_bits: (B,) estimated bits of the code.
        z_bits: (B,) estimated bits of the hyper-latent.
        y: (B, C, H/64, W/64), the code as the decoder has it.
        target: y0 (B, K, H/32, W/32), the clean latent, without a graph.
        condition: (B, caption channels), the mean of the condition's tokens.
    """

    images: Tensor
    latent: Tensor
    y_bits: Tensor
    z_bits: Tensor
    y: Tensor
    target: Tensor
    condition: Tensor


class PretrainedCodecNetwork(nn.Module):
    """Encoder, entropy model and decoder around two pretrained networks.

    Args:
        autoencoder: an `AutoencoderDC` of diffusers, 32-fold; it is frozen, and gets adapters in its decoder.
        transformer: a `SanaTransformer2DModel` of the same latents; it is frozen, and gets adapters.
        settings: the shape of all else.
        origins: where "autoencoder" and "transformer" came from, so that a saved codec can name them.

    Raises:
        UserError: the two do not fit each other, or the autoencoder is not 32-fold.
    """

    stride, multiple = STRIDE, MULTIPLE

    def __init__(
        self,
        autoencoder: Any,
        transformer: Any,
        settings: PretrainedSettings,
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        super().__init__()
        check_pair(autoencoder, transformer)
        self.settings, self.origins = settings, dict(origins or {})
        latent, caption = autoencoder.config.latent_channels, transformer.config.caption_channels
        add_adapters(autoencoder, settings.autoencoder_rank, AUTOENCODER_LAYERS)
        add_adapters(transformer, settings.transformer_rank, TRANSFORMER_LAYERS)
        self.autoencoder, self.transformer = autoencoder, transformer
        channels, levels = settings.channels, settings.levels
        self.analysis = Analysis(latent, channels, settings.analysis_widths, settings.auxiliary_widths)
        steps = COARSER * level_steps(levels)
        self.latent_codec = LatentCodec(channels, torch.ones(channels), steps, settings.hyper, settings.context)
        self.mean = Head(channels, latent, 3, channels)
        self.residual = Head(channels, latent, 2, channels, zero=True)
        self.condition = Head(channels, channels, 3, channels)
        self.conditioner = Conditioner(channels, caption, settings.pooled_tokens, settings.learned_tokens)
        if settings.step == "element":
            self.scale = Head(channels, latent, 3, settings.scale_width, zero=True)
        else:
            self.time = nn.Parameter(torch.linspace(FIRST_TIMES[0], FIRST_TIMES[1], levels).logit())

    def train(self, mode: bool = True) -> PretrainedCodecNetwork:
        """As every module, but that the pretrained networks stay as they run: no statistics of theirs move."""
        super().train(mode)
        self.autoencoder.eval()
        self.transformer.eval()
        return self

    def train_new_parts(self) -> None:
        """Let all that is not pretrained, and the adapters, have gradients; the pretrained weights have none."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_adapter(name) or not name.startswith(("autoencoder.", "transformer.")))

    # ---- images to the code -------------------------------------------------------------------------------------

    @torch.no_grad()
    def clean_latent(self, images: Tensor) -> Tensor:
        """y0 (B, K, H/32, W/32) of images (B, 3, H, W) in [0, 1], with the variance that the transformer expects."""
        latent: Tensor = self.autoencoder.encode(2 * images - 1, return_dict=False)[0]
        return latent.float() * self.autoencoder.config.scaling_factor

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], whose sides are multiples of 256, to the code (B, C, H/64, W/64)."""
        made: Tensor = self.analysis(self.clean_latent(images), images - 0.5)
        return made

    def calibrate(self, images: Tensor) -> None:
        """Give the code of a new network variance 1, and its hyper-latent a width that survives rounding.

        Args:
            images: (B, 3, H, W) in [0, 1], at least two.
        """
        with torch.no_grad():
            latent = self.clean_latent(images)
            self.analysis.calibrate(self.analysis(latent, images - 0.5))
            self.latent_codec.calibrate(self.analysis(latent, images - 0.5))

    # ---- the code to images -------------------------------------------------------------------------------------

    def decode(self, y: Tensor, quality: Tensor, indexes: Tensor) -> Tensor:
        """The code to images.

        Args:
            y: (B, C, h, w).
            quality: (B,) in [0, 100].
            indexes: scale indexes of the entropy model, (B, C, h, w).

        Returns:
            (B, 3, 64 h, 64 w), not clamped.
        """
        return self.decode_with_latent(y, quality, indexes)[0]

    def decode_with_latent(self, y: Tensor, quality: Tensor, indexes: Tensor) -> tuple[Tensor, Tensor]:
        """`decode`, and the latent x0 (B, K, 2 h, 2 w) after the step."""
        x0 = self._step(y, quality, indexes, self.tokens(y))
        return self.pixels(x0), x0

    def latent(self, y: Tensor, quality: Tensor) -> Tensor:
        """The mean (B, K, 2 h, 2 w) of a code (B, C, h, w), before the step."""
        made: Tensor = self.mean(y)
        return made.float()

    def tokens(self, y: Tensor) -> Tensor:
        """The condition that the transformer reads in place of a caption, (B, N, caption channels)."""
        made: Tensor = self.conditioner(self.condition(y))
        return made

    def pixels(self, x0: Tensor) -> Tensor:
        """Images (B, 3, 32 h, 32 w) of a latent (B, K, h, w)."""
        images: Tensor = self.autoencoder.decode(x0 / self.autoencoder.config.scaling_factor, return_dict=False)[0]
        return images.float() / 2 + 0.5

    def step_sizes(self, indexes: Tensor) -> Tensor:
        """rho (B, K, 2 h, 2 w) of scale indexes (B, C, h, w), where the step is one for each element."""
        logarithms = indexes * LOG_STEP + math.log(SMALLEST)
        s = (0.5 * self.scale(logarithms).float().clamp(-30, 20)).exp()
        return released_step(s)

    def _step(self, y: Tensor, quality: Tensor, indexes: Tensor, tokens: Tensor) -> Tensor:
        mean, residual = self.latent(y, quality), self.residual(y).float()
        if self.settings.step == "sample":
            t = between_levels(self.time, quality).sigmoid()
            return mean - t[:, None, None, None] * self.flow(mean, 1000 * t, tokens) + residual
        time = torch.full((len(mean),), TIME, device=mean.device)
        return mean - SIGMA * self.step_sizes(indexes) * self.flow(mean, time, tokens) + residual

    def flow(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        """v of the transformer.

        Args:
            x: (B, K, h, w).
            time: (B,) in [0, 1000].
            tokens: (B, N, caption channels).

        Returns:
            (B, K, h, w). A predicted variance, if there is one, is dropped.
        """
        made: Tensor = self.transformer(
            x,
            encoder_hidden_states=tokens,
            timestep=time * self.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return made[:, : x.shape[1]].float()

    # ---- both ---------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, quality: Tensor, noise: Tensor, z_noise: Tensor) -> PretrainedReconstruction:
        """Train: code and decode; see `LatentCodec.forward`."""
        target = self.clean_latent(images)
        coded = self.latent_codec(self.analysis(target, images - 0.5), quality, noise, z_noise)
        tokens = self.tokens(coded.y)
        x0 = self._step(coded.y, quality, coded.indexes, tokens)
        return PretrainedReconstruction(
            self.pixels(x0), x0, coded.y_bits, coded.z_bits, coded.y, target, tokens.mean(1)
        )

    @torch.no_grad()
    def reconstruct(self, images: Tensor, quality: Tensor) -> tuple[Tensor, float]:
        """What the decoder makes of images (B, 3, H, W), and the bits that all of them are estimated to take."""
        coded = self.latent_codec.rounded(self.encode(images), quality)
        return self.decode(coded.y, quality, coded.indexes).float(), float(coded.y_bits.sum() + coded.z_bits.sum())


def check_pair(autoencoder: Any, transformer: Any) -> None:
    """Raise UserError where the two networks do not fit each other or the codec."""
    ratio, channels = autoencoder.spatial_compression_ratio, autoencoder.config.latent_channels
    if ratio != STRIDE // 2:
        raise UserError(f"the autoencoder is {ratio}-fold; it must be {STRIDE // 2}-fold, as dc-ae-f32c32 is")
    if transformer.config.in_channels != channels:
        raise UserError(
            f"the transformer takes {transformer.config.in_channels} channels and the autoencoder makes {channels}"
        )
    if transformer.config.guidance_embeds:
        raise UserError("the transformer embeds a guidance scale (SANA-Sprint); take one without, such as SANA's")
