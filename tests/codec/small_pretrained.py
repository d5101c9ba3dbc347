"""A small codec around a tiny autoencoder and a tiny transformer of the real classes, with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from small_codec import picture

from diffdistill.codec.pretrained import PretrainedCodecNetwork
from diffdistill.codec.pretrained_settings import PretrainedSettings
from diffdistill.codec.pretrained_source import PretrainedSource, pretrained_network

SETTINGS = PretrainedSettings(
    channels=16, hyper=8, context=16, analysis_widths=(8, 8), auxiliary_widths=(8, 8, 8), scale_width=8,
    pooled_tokens=6, learned_tokens=3, autoencoder_rank=2, transformer_rank=3,
)  # fmt: skip
STAGES = ["ResBlock"] * 4 + ["EfficientViTBlock"] * 2


def autoencoder(**settings: Any) -> AutoencoderDC:
    """32-fold, with the kinds of blocks of dc-ae-f32c32-sana-1.0."""
    widths, scales = (4, 4, 4, 4, 8, 8), ((),) * 4 + ((5,),) * 2
    given: dict[str, Any] = dict(
        latent_channels=4, attention_head_dim=4, encoder_block_types=STAGES, decoder_block_types=STAGES,
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales,
        upsample_block_type="interpolate", downsample_block_type="conv", scaling_factor=0.41407,
    )  # fmt: skip
    return AutoencoderDC(**{**given, **settings})


def transformer(**settings: Any) -> SanaTransformer2DModel:
    given: dict[str, Any] = dict(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        sample_size=8,
    )  # fmt: skip
    return SanaTransformer2DModel(**{**given, **settings})


def save_parts(folder: Path) -> tuple[PretrainedSource, PretrainedSource]:
    """Both networks, each in a folder of its own."""
    torch.manual_seed(3)
    autoencoder().save_pretrained(folder / "vae")
    transformer().save_pretrained(folder / "transformer")
    return PretrainedSource(str(folder / "vae")), PretrainedSource(str(folder / "transformer"))


def small_pretrained(folder: Path, settings: PretrainedSettings = SETTINGS, seed: int = 0) -> PretrainedCodecNetwork:
    """A codec every part of which takes part; its networks lie in the folder."""
    sources = save_parts(folder)
    torch.manual_seed(seed)
    made = pretrained_network(*sources, settings)
    for parameter in made.parameters():
        if parameter.requires_grad and not parameter.abs().max() > 0:
            torch.nn.init.normal_(parameter, std=0.05)
    made.calibrate(torch.stack([picture(256, 256, seed) for seed in range(3)]).float() / 255)
    made.latent_codec.scales.second.data.normal_(std=0.2)
    return made
