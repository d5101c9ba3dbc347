"""Pipelines of diffusers' own classes with random weights, small enough for unit tests: SDXL and SANA."""

import string
from pathlib import Path
from typing import Any

import torch


def save_tiny_sdxl(folder: Path, force_zeros: bool = True, prediction_type: str = "epsilon") -> Path:
    """SDXL: two text encoders of different widths, sizes as conditions, transformers of several layers."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from diffdistill.models.tokenizer import train_clip_tokenizer

    torch.manual_seed(0)
    tokenizers = [train_clip_tokenizer(["red apple", "blue car"] * 3, vocabulary=256, max_length=8) for _ in range(2)]
    tokenizers[1].pad_token = "!"
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            latent_channels=4, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=8, scaling_factor=0.13025,
        ),
        text_encoder=CLIPTextModel(_clip(tokenizers[0], 16)),
        text_encoder_2=CLIPTextModelWithProjection(_clip(tokenizers[1], 24)),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            cross_attention_dim=16 + 24, attention_head_dim=(1, 2), norm_num_groups=4, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 12,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
            prediction_type=prediction_type, timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def _clip(tokenizer: Any, width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=12,
    )  # fmt: skip


def save_tiny_sana(folder: Path, learned_variance: bool = False, timestep_scale: float = 1.0, stages: int = 3) -> Path:
    """SANA: linear attention, a Gemma text encoder with its instruction, a deep-compression autoencoder of 3 stages."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from tokenizers.processors import TemplateProcessing
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    torch.manual_seed(0)
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation, "\n"]
    vocab = {t: i for i, t in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters, "ap", "re"])}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[("a", "p"), ("r", "e")])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # as in Gemma's tokenizer.json
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    text = Gemma2Config(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
    )  # fmt: skip
    pipeline = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text),
        vae=AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(*(8,) * (stages - 1), 16),
            decoder_block_out_channels=(*(8,) * (stages - 1), 16), encoder_layers_per_block=(1,) * stages,
            decoder_layers_per_block=(1,) * stages, encoder_qkv_multiscales=((),) * stages,
            decoder_qkv_multiscales=((),) * stages, scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4, out_channels=8 if learned_variance else 4, num_attention_heads=2, attention_head_dim=8,
            num_layers=3, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
            caption_channels=16, sample_size=8, timestep_scale=timestep_scale,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0,
        ),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
