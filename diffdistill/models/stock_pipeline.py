"""A StableDiffusionPipeline of parts that are there already."""

from __future__ import annotations

from typing import Any


def stock_pipeline(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any = None) -> Any:
    """The parts as a StableDiffusionPipeline without a safety checker; None for one that nothing asks for.

    Raises:
        ValueError: parts that the pipeline refuses.
    """
    from diffusers import StableDiffusionPipeline

    build: Any = StableDiffusionPipeline
    return build(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
