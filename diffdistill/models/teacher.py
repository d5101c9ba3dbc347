"""A Stable-Diffusion-class pipeline as a frozen teacher: UNet, VAE, CLIP text encoder and scheduler.

Loaded through diffusers from safetensors only; the schedule (terminal SNR included) is read from its scheduler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import PredictionType, VPSchedule, from_diffusers_prediction_type
from diffdistill.errors import UserError

from .digests import pipeline_settings, weights_digest
from .hub import open_pipeline
from .network import UNet
from .pipeline_folder import NETWORKS, PipelineFolder
from .stock_pipeline import stock_pipeline
from .text import embed

VERY_LARGE = 10**9  # transformers gives a tokenizer without a length 1e30


@dataclass
class Teacher:
    """The pipeline, its UNet as a network, and the schedule and prediction type read from its scheduler.

    Attributes:
        source: folder or hub id.
        scheduler_config: the scheduler's settings, there even where its object is not.
        no_scheduler: why `pipeline.scheduler` is None, where it is: training needs none, sampling does.
    """

    pipeline: Any
    network: UNet
    schedule: VPSchedule
    prediction_type: PredictionType
    source: str = "pipeline"
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    no_scheduler: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width; the last two differ where pictures are oblong."""
        return latent_shape(self.pipeline.unet)

    def embed(self, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Prompt embeddings (N, L, D), as the stock pipeline makes them."""
        return embed(self.pipeline, prompts, batch_size)

    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Latents (N, C, h, w) to pictures (N, 3, H, W) in [0, 1]."""
        return decode(self.pipeline.vae, latents, batch_size)

    def digest(self) -> str:
        """Hash of schedule, tokenizer, all weights, and settings of UNet and VAE: tells one teacher from another."""
        found = hashlib.sha256(self.prediction_type.encode())
        found.update(self.schedule.alphas_cumprod.cpu().numpy().tobytes())
        p = self.pipeline
        found.update(json.dumps(pipeline_settings(p), sort_keys=True, default=str).encode())
        for part in (p.unet, p.vae, p.text_encoder):
            found.update(weights_digest(part).encode())
        return found.hexdigest()[:16]


@torch.no_grad()
def decode(vae: Any, latents: Tensor, batch_size: int = 16) -> Tensor:
    """Latents (N, C, h, w) to pictures (N, 3, H, W) in [0, 1] by an AutoencoderKL."""
    parts = [vae.decode(z).sample.float() for z in (latents / vae.config.scaling_factor).split(batch_size)]
    return torch.cat(parts).clamp(-1, 1) / 2 + 0.5


@torch.no_grad()
def encode(vae: Any, images: Tensor, batch_size: int = 64) -> Tensor:
    """Pictures (N, 3, H, W), uint8, to latents (N, C, h, w) by an AutoencoderKL: the posterior's mode, scaled."""
    parts = [vae.encode(c.to(vae.device).float() / 127.5 - 1).latent_dist.mode() for c in images.split(batch_size)]
    return torch.cat(parts) * vae.config.scaling_factor


def latent_shape(unet: Any) -> tuple[int, int, int]:
    """Channels, height and width of the latents that the stock pipeline draws by default.

    Raises:
        ValueError: the UNet's settings give no size, or one that is neither an int nor a pair, height first.
    """
    size = unet.config.sample_size
    pair = [size, size] if isinstance(size, int) else size
    if size is None:
        raise ValueError(
            "unet/config.json has no sample_size, so the size of its pictures is not known; "
            "set it to height and width of a latent, [64, 64] say"
        )
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(n) is int and n > 0 for n in pair):
        raise ValueError(f"unet/config.json has sample_size {size!r}; it should be a whole number or a pair of them")
    return unet.config.in_channels, pair[0], pair[1]


def load_teacher(source: str | PipelineFolder) -> Teacher:
    """Load a pipeline folder or hub id, as float32.

    Raises:
        UserError: nothing there, weights that are not safetensors, another class of pipeline or part, a prediction
            type or noise schedule that is not supported, or parts that do not fit each other.
    """
    files = open_pipeline(source) if isinstance(source, str) else source
    source = files.source
    kind_of_pipeline = files.index.get("_class_name")
    if kind_of_pipeline != "StableDiffusionPipeline":
        raise UserError(f"teacher {source} is a {kind_of_pipeline}; expected a StableDiffusionPipeline")
    files.path("tokenizer/tokenizer_config.json")
    for part in NETWORKS:  # before any is loaded
        files.check_class(part)
        files.variant(part)
    scheduler, problem = files.load_scheduler()
    written = files.read_json("scheduler/scheduler_config.json")
    if "FlowMatch" in str(written.get("_class_name")):
        raise UserError(f"teacher {source}: {written['_class_name']} is not supported; a variance-preserving one is")
    if "beta_schedule" not in written and not written.get("trained_betas"):
        raise UserError(f"teacher {source}: {written.get('_class_name')} has no beta schedule; a VP scheduler has one")
    config = {**written, **({} if scheduler is None else scheduler.config)}
    if scheduler is None and not config.get("trained_betas"):  # what its class would fill in is not known
        for key in ("beta_schedule", "beta_start", "beta_end"):
            if key not in config:
                raise UserError(f"teacher {source}: its scheduler cannot be made ({problem}), nor says its file {key}")
    schedule, kind = _process(source, config)
    unet, vae, text_encoder = (files.load(part) for part in NETWORKS)
    tokenizer = files.load_tokenizer()
    channels, latents = unet.config.in_channels, vae.config.latent_channels
    if channels != latents:
        raise UserError(f"teacher {source}: its UNet takes {channels} channels, not the {latents} of a latent alone")
    try:
        latent_shape(unet)
        fit_length(tokenizer, text_encoder)
        pipeline = stock_pipeline(unet, vae, text_encoder, tokenizer, scheduler)
    except ValueError as error:
        raise UserError(f"teacher {source}: {error}") from error
    return Teacher(pipeline, UNet(unet), schedule, kind, source, config, problem)


def load_autoencoder(source: str) -> Any:
    """The AutoencoderKL in a folder, as float32, frozen.

    Raises:
        UserError: nothing there, another class, no safetensors, or torn files.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"no autoencoder at {source}: expected a folder with an AutoencoderKL")
    return PipelineFolder(source, folder, {}, noun="autoencoder", kind="autoencoder").load(".", "vae")


def _process(source: str, config: dict[str, Any]) -> tuple[VPSchedule, PredictionType]:
    """Schedule and kind of prediction of a scheduler's settings."""
    try:
        kind = from_diffusers_prediction_type(config.get("prediction_type", "epsilon"))
        schedule = VPSchedule.from_config(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"teacher {source}: {error}") from error
    if kind == "flow":
        raise UserError(f"teacher {source}: flow prediction on a variance-preserving schedule is not supported")
    return schedule, kind


def fit_length(tokenizer: Any, text_encoder: Any) -> None:
    """Give a tokenizer without a length the text encoder's, which is the longest that it reads.

    Raises:
        ValueError: the tokenizer's length is longer, or the text encoder lacks an embedding of one of its tokens.
    """
    longest = text_encoder.config.max_position_embeddings
    if tokenizer.model_max_length >= VERY_LARGE:
        tokenizer.model_max_length = longest
    if tokenizer.model_max_length > longest:
        raise ValueError(
            f"tokenizer_config.json has model_max_length {tokenizer.model_max_length}, and the text encoder reads "
            f"{longest} tokens at the most"
        )
    rows, needed = len(text_encoder.get_input_embeddings().weight), 1 + max(tokenizer.get_vocab().values())
    if needed > rows:
        raise ValueError(
            f"the tokenizer has token ids up to {needed - 1}, and the text encoder has embeddings of {rows} "
            "tokens alone; take the tokenizer that belongs to it"
        )
