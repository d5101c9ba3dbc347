"""Stable Diffusion XL (arXiv 2307.01952): a UNet conditioned on embeddings of two text encoders and on sizes.

The condition of N prompts:

    text      (N, L, D)   the last but one hidden layers of both encoders, side by side
    pooled    (N, P)      the pooled and projected output of the second encoder
    time_ids  (1, 6)      height and width of the original, top and left of the crop, height and width of the target
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import PredictionType, Schedule
from diffdistill.diffusion.condition import Condition, expand

from .. import text
from ..pipeline_folder import Part, quiet
from ..portable_text import make_portable
from . import vp
from .base import Family
from .unet import UNetBackbone, call_unet, sample_size

if TYPE_CHECKING:
    from ..teacher import Teacher

NAMES = {"text", "pooled", "time_ids"}


class SDXLBackbone(UNetBackbone):
    """A UNet2DConditionModel with added conditions; the condition is a mapping with text, pooled and time_ids."""

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, Mapping) or cond.keys() != NAMES:
            found = sorted(cond) if isinstance(cond, Mapping) else type(cond).__name__
            raise ValueError(f"the condition is {found}; an SDXL network takes a mapping with {sorted(NAMES)}")
        parts: Any = expand(cond, len(x_t))
        added = {"text_embeds": self.in_own_dtype(parts["pooled"]), "time_ids": parts["time_ids"]}
        text_embeddings = self.in_own_dtype(parts["text"])
        return call_unet(self.inner, self.in_own_dtype(x_t), time, text_embeddings, added_cond_kwargs=added)


class StableDiffusionXL(Family):
    """StableDiffusionXLPipeline."""

    pipeline_class = "StableDiffusionXLPipeline"
    network = "unet"
    parts = {
        "unet": Part(("UNet2DConditionModel", "SelfConditionedUNet"), "diffusers"),
        "vae": Part(("AutoencoderKL",), "diffusers"),
        "text_encoder": Part(("CLIPTextModel",), "transformers", optional=True),
        "text_encoder_2": Part(("CLIPTextModelWithProjection",), "transformers"),
        "tokenizer": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "transformers", tokenizer=True, optional=True),
        "tokenizer_2": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "transformers", tokenizer=True),
    }

    def backbone(self, inner: nn.Module) -> SDXLBackbone:
        return SDXLBackbone(inner)

    def check_parts(self, parts: Mapping[str, Any]) -> None:
        sample_size(parts["unet"].config)
        for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
            if (parts[tokenizer] is None) != (parts[encoder] is None):
                raise ValueError(f"its {tokenizer} and its {encoder} belong together, and one of them is missing")
            if parts[tokenizer] is not None:
                text.fit_length(parts[tokenizer], parts[encoder])

    def assemble(self, parts: Mapping[str, Any], scheduler: Any, index: Mapping[str, Any] | None = None) -> Any:
        from diffusers import StableDiffusionXLPipeline

        build: Any = StableDiffusionXLPipeline
        return build(
            **{name: parts[name] for name in self.parts},
            scheduler=scheduler,
            force_zeros_for_empty_prompt=bool((index or {}).get("force_zeros_for_empty_prompt", True)),
            add_watermarker=False,
        )

    def save(self, pipeline: Any, folder: Path) -> None:
        pipeline.save_pretrained(folder)
        for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
            if getattr(pipeline, tokenizer) is not None:
                make_portable(getattr(pipeline, tokenizer), folder, tokenizer, encoder)

    def process(self, config: Mapping[str, Any], written: Mapping[str, Any]) -> tuple[Schedule, PredictionType]:
        return vp.process(config, written)

    def embed(self, pipeline: Any, prompts: Sequence[str]) -> Condition:
        with quiet():  # it reports cut prompts for each batch; `report_cut` reports them once
            embeddings, _, pooled, _ = pipeline.encode_prompt(
                list(prompts), device=pipeline.text_encoder_2.device, do_classifier_free_guidance=False
            )
        return {"text": embeddings, "pooled": pooled, "time_ids": self._time_ids(pipeline, embeddings)}

    def null(self, pipeline: Any) -> Condition:
        found: Any = self.embed(pipeline, [""])
        if not pipeline.config.force_zeros_for_empty_prompt:
            return {**found}
        return {name: part if name == "time_ids" else torch.zeros_like(part) for name, part in found.items()}

    def _time_ids(self, pipeline: Any, embeddings: Tensor) -> Tensor:
        """The time_ids (1, 6) of images of the pipeline's own size that are not cropped."""
        _, height, width = self.latent_shape(pipeline)
        size = (height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor)
        projected = pipeline.text_encoder_2.config.projection_dim
        found: Tensor = pipeline._get_add_time_ids(size, (0, 0), size, embeddings.dtype, projected)
        return found.to(embeddings.device)

    def report_cut(self, pipeline: Any, prompts: Sequence[str]) -> None:
        tokenizers = [each for each in (pipeline.tokenizer, pipeline.tokenizer_2) if each is not None]
        text.report_cut(min(tokenizers, key=lambda tokenizer: tokenizer.model_max_length), prompts)

    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        return sample_size(pipeline.unet.config)

    def call_options(self, pipeline: Any, height: int, width: int) -> dict[str, Any]:
        size = (height, width)
        return {"height": height, "width": width, "original_size": size, "target_size": size}

    def check_size(self, pipeline: Any, height: int, width: int) -> None:
        pipeline.check_inputs("a photo", None, height, width, None)

    def one_step_scheduler(self, teacher: Teacher, time: float | Tensor) -> Any:
        return vp.one_step_scheduler(teacher, time)

    def few_step_scheduler(self, teacher: Teacher, time: float | Tensor, steps: int) -> Any:
        return vp.few_step_scheduler(teacher, time)
