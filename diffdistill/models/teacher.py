"""A Stable-Diffusion-class pipeline as a frozen teacher: UNet, VAE, CLIP text encoder and scheduler.

Loaded through diffusers from safetensors only; the schedule (terminal SNR included) is read from its scheduler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion import PredictionType, VPSchedule, from_diffusers_prediction_type
from diffdistill.errors import UserError

from .network import UNet


@dataclass
class Teacher:
    """The pipeline, its UNet as a network, and the schedule and prediction type read from its scheduler."""

    pipeline: Any
    network: UNet
    schedule: VPSchedule
    prediction_type: PredictionType

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.pipeline.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    def embed(self, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Prompt embeddings (N, L, D), as the stock pipeline makes them."""
        return embed(self.pipeline, prompts, batch_size)

    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Latents (N, C, h, w) to pictures (N, 3, H, W) in [0, 1]."""
        return decode(self.pipeline.vae, latents, batch_size)

    def digest(self) -> str:
        """Hash of schedule, tokenizer, and all weights and settings of the networks: tells one teacher from another."""
        found = hashlib.sha256(self.prediction_type.encode())
        found.update(self.schedule.alphas_cumprod.cpu().numpy().tobytes())
        p = self.pipeline
        words = p.tokenizer.backend_tokenizer.to_str() if hasattr(p.tokenizer, "backend_tokenizer") else "{}"
        text = {"model": json.loads(words).get("model"), "length": p.tokenizer.model_max_length}  # the rest is of calls
        settings = [_settings(dict(p.unet.config)), _settings(dict(p.vae.config)), text]
        found.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for part in (p.unet, p.vae, p.text_encoder):
            found.update(weights_digest(part).encode())
        return found.hexdigest()[:16]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Without what says where a network came from and which version wrote it."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def weights_digest(network: Any) -> str:
    """Hash of the names, shapes, types and values of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


@torch.no_grad()
def embed(pipeline: Any, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Prompt embeddings (N, L, D) by a pipeline's tokenizer and text encoder."""
    p, chunks = pipeline, []
    device = p.text_encoder.device
    for i in range(0, len(prompts), batch_size):
        ids = p.tokenizer(
            list(prompts[i : i + batch_size]),
            padding="max_length",
            truncation=True,
            max_length=p.tokenizer.model_max_length,
            return_tensors="pt",
        )["input_ids"]
        chunks.append(p.text_encoder(ids.to(device))[0])
    return torch.cat(chunks)


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


def _look_into(source: str) -> None:
    """Refuse a folder that holds no pipeline or pickled weights, before diffusers prints its own lines about it."""
    folder = Path(source)
    if not folder.is_dir():
        local = folder.exists() or folder.parent.is_dir()  # beside other folders: a slip of the pen, not a hub id
        if local or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(f"no teacher at {source}: expected a pipeline folder or a hub id such as owner/name")
        return
    for file in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        if not (folder / file).is_file():
            raise UserError(f"no Stable-Diffusion-class pipeline at {source}: {file} is missing")
    for part in ("unet", "vae", "text_encoder"):
        if not any((folder / part).glob("*.safetensors")):
            raise UserError(
                f"teacher {source}: {part} has no *.safetensors weights; pickled ones (such as .bin) are never loaded"
            )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars that diffusers and transformers show for parts that load in a moment."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [log for log in (of_diffusers, of_transformers) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def load_teacher(source: str) -> Teacher:
    """Load a pipeline folder or hub id.

    Raises:
        UserError: nothing there, weights that are not safetensors, another class of pipeline, or a prediction type
            or noise schedule that is not supported.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors import SafetensorError

    _look_into(source)
    try:
        kind_of_pipeline = str(StableDiffusionPipeline.load_config(source).get("_class_name"))
        config = dict(DDIMScheduler.load_config(source, subfolder="scheduler"))
    except (OSError, ValueError) as error:
        raise UserError(f"no Stable-Diffusion-class pipeline at {source}: {_first_line(error)}") from error
    if kind_of_pipeline != "StableDiffusionPipeline":
        raise UserError(f"teacher {source} is a {kind_of_pipeline}; expected a StableDiffusionPipeline")
    if "FlowMatch" in str(config.get("_class_name")):
        raise UserError(f"teacher {source}: {config['_class_name']} is not supported; a variance-preserving one is")
    if "beta_schedule" not in config and not config.get("trained_betas"):
        raise UserError(f"teacher {source}: {config.get('_class_name')} has no beta schedule; a VP scheduler has one")
    try:  # before the weights, which may be gigabytes
        kind = from_diffusers_prediction_type(config.get("prediction_type", "epsilon"))
        schedule = VPSchedule.from_config(config)
    except ValueError as error:
        raise UserError(f"teacher {source}: {error}") from error
    if kind == "flow":
        raise UserError(f"teacher {source}: flow prediction on a variance-preserving schedule is not supported")
    try:
        with _no_bars():
            pipeline: Any = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True, safety_checker=None)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = _first_line(error)
        raise UserError(f"no Stable-Diffusion-class pipeline in safetensors at {source}: {reason}") from error
    for name in ("unet", "vae", "text_encoder"):
        absent = [key for key, p in getattr(pipeline, name).named_parameters() if p.is_meta]
        if absent:
            raise UserError(f"teacher {source}: its {name} file lacks {len(absent)} weights, {absent[0]} for one")
    channels, latents = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
    if channels != latents:
        raise UserError(f"teacher {source}: its UNet takes {channels} channels, not the {latents} of a latent alone")
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    return Teacher(pipeline, UNet(pipeline.unet), schedule, kind)
