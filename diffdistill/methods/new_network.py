"""New networks of a small text-to-image model: a UNet, a CLIP text encoder and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffdistill.data.captioned import CaptionedImages
from diffdistill.data.colour import HUES
from diffdistill.errors import UserError
from diffdistill.models.latents import LatentSpace
from diffdistill.models.self_conditioning import SelfConditioning
from diffdistill.models.tokenizer import train_clip_tokenizer


@dataclass(frozen=True)
class NetworkSettings:
    """The networks of a text-to-image model that is trained from data.

    Args:
        autoencoder: folder of the AutoencoderKL.
        init_from: the model to start from, a pipeline folder or hub id; for any-step methods also the folder of an
            any-step model. null for new networks of the sizes below.
        block_out_channels: widths of the UNet, the finest level first.
        cross_attention: for each level, whether it attends to the text.
        layers_per_block: number of residual blocks in a level.
        text_width: width of the text encoder.
        text_layers: number of layers of the text encoder.
        attention: auto, sdpa, math or xformers.
        self_conditioning: how the network is conditioned on its own features, as in DDAE++; by default it is not. A
            network that training starts from gets it too, unless it has it already.

    Raises:
        UserError: `block_out_channels` and `cross_attention` have different lengths.
    """

    autoencoder: str = "assets/teacher/vae"
    init_from: str | None = None
    block_out_channels: tuple[int, ...] = (128, 128)
    cross_attention: tuple[bool, ...] = (False, True)
    layers_per_block: int = 1
    text_width: int = 128
    text_layers: int = 2
    attention: str = "auto"
    self_conditioning: SelfConditioning = SelfConditioning()

    def __post_init__(self) -> None:
        if len(self.block_out_channels) != len(self.cross_attention):
            raise UserError(
                f"block_out_channels has {len(self.block_out_channels)} levels and cross_attention "
                f"{len(self.cross_attention)}; they must have the same number"
            )


def new_tokenizer(images: CaptionedImages) -> Any:
    """A CLIP tokenizer whose merges are learnt from the captions; for the emoji set also from colours and articles."""
    words = [*images.captions]
    if images.styles is not None:
        words += [*(" ".join(HUES) for _ in range(50)), *("a an" for _ in range(50))]
    return train_clip_tokenizer(words)


def new_unet(settings: NetworkSettings, latents: LatentSpace, size: tuple[int, int]) -> Any:
    """A UNet2DConditionModel for latents of images of this size, (height, width) in pixels."""
    from diffusers import UNet2DConditionModel

    channels, height, width = latents.shape(*size)
    levels: Sequence[bool] = settings.cross_attention
    sample_size: Any = height if height == width else (height, width)
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(settings.block_out_channels),
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in levels),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(levels)),
        cross_attention_dim=settings.text_width,
        attention_head_dim=32,
    )
    return self_conditioned(unet, settings)


def self_conditioned(unet: Any, settings: NetworkSettings) -> Any:
    """The UNet, with the self-conditioning of the settings.

    Raises:
        UserError: the network has none of its taps, or is self-conditioned in another way already.
    """
    wanted = settings.self_conditioning
    if wanted.tap is None:
        return unet
    from diffdistill.models.self_conditioned import KEY, add_self_conditioning, is_self_conditioned

    if not is_self_conditioned(unet):
        return add_self_conditioning(unet, wanted)
    if unet.config[KEY] != asdict(wanted):
        raise UserError(f"network.init_from is self-conditioned with {unet.config[KEY]}, and not with {asdict(wanted)}")
    return unet


def new_text_encoder(settings: NetworkSettings, tokenizer: Any) -> Any:
    """A CLIPTextModel for the tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width = settings.text_width
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
