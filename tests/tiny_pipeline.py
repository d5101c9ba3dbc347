"""A Stable-Diffusion-class pipeline with random weights, small enough for unit tests."""

from pathlib import Path

import torch


def save_tiny_pipeline(folder: Path, prediction_type: str = "v_prediction", cameras: bool = False) -> Path:
    """Write the pipeline; with cameras, its UNet is told the 16 numbers of one, as MVDream's is."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from diffdistill.models.tokenizer import train_clip_tokenizer

    projection = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if cameras else {}
    torch.manual_seed(0)
    tokenizer = train_clip_tokenizer(["red apple", "blue car"] * 3, vocabulary=256, max_length=8)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            latent_channels=4, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=8, scaling_factor=0.5,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=8, norm_num_groups=4, **projection,
        ),
        scheduler=DDIMScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
