"""Stable Diffusion 1.x and 2.x: a UNet that is conditioned on the embeddings (B, L, D) of one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffdistill.diffusion import PredictionType, Schedule

from .. import text
from ..pipeline_folder import Part, quiet
from ..portable_text import make_portable
from . import vp
from .base import Family
from .unet import UNetBackbone, sample_size

if TYPE_CHECKING:
    from ..teacher import Teacher


class StableDiffusion(Family):
    """StableDiffusionPipeline, without a safety checker."""

    pipeline_class = "StableDiffusionPipeline"
    network = "unet"
    parts = {
        "unet": Part(("UNet2DConditionModel", "SelfConditionedUNet"), "diffusers"),
        "vae": Part(("AutoencoderKL",), "diffusers"),
        "text_encoder": Part(("CLIPTextModel",), "transformers"),
        "tokenizer": Part(("CLIPTokenizer", "CLIPTokenizerFast"), "transformers", tokenizer=True),
    }

    def backbone(self, inner: nn.Module) -> UNetBackbone:
        return UNetBackbone(inner)

    def check_parts(self, parts: Mapping[str, Any]) -> None:
        sample_size(parts["unet"].config)  # is checked before the pipeline reads it
        text.fit_length(parts["tokenizer"], parts["text_encoder"])

    def assemble(self, parts: Mapping[str, Any], scheduler: Any, index: Mapping[str, Any] | None = None) -> Any:
        unet, vae, text_encoder, tokenizer = (parts[name] for name in self.parts)
        return stock_pipeline(unet, vae, text_encoder, tokenizer, scheduler)

    def save(self, pipeline: Any, folder: Path) -> None:
        pipeline.save_pretrained(folder)
        make_portable(pipeline.tokenizer, folder)

    def process(self, config: Mapping[str, Any], written: Mapping[str, Any]) -> tuple[Schedule, PredictionType]:
        return vp.process(config, written)

    def embed(self, pipeline: Any, prompts: Sequence[str]) -> Tensor:
        with quiet():  # it reports cut prompts for each batch; `report_cut` reports them once
            found: Tensor = pipeline.encode_prompt(list(prompts), pipeline.text_encoder.device, 1, False)[0]
        return found

    def null(self, pipeline: Any) -> Tensor:
        return self.embed(pipeline, [""])

    def report_cut(self, pipeline: Any, prompts: Sequence[str]) -> None:
        text.report_cut(pipeline.tokenizer, prompts)

    def latent_shape(self, pipeline: Any) -> tuple[int, int, int]:
        return sample_size(pipeline.unet.config)

    def call_options(self, pipeline: Any, height: int, width: int) -> dict[str, Any]:
        return {"height": height, "width": width}

    def check_size(self, pipeline: Any, height: int, width: int) -> None:
        pipeline.check_inputs("a photo", height, width, None)

    def one_step_scheduler(self, teacher: Teacher, time: float | Tensor) -> Any:
        return vp.one_step_scheduler(teacher, time)

    def few_step_scheduler(self, teacher: Teacher, time: float | Tensor, steps: int) -> Any:
        return vp.few_step_scheduler(teacher, time)


def stock_pipeline(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any = None) -> Any:
    """The parts as a StableDiffusionPipeline without a safety checker. A part that is not needed may be None.

    Raises:
        ValueError: the pipeline refuses the parts.
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
