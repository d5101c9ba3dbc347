"""A diffusers pipeline as a frozen teacher: its network, schedule, latent space and prompt embeddings.

diffusers loads it, from safetensors alone. The schedule, with its terminal SNR, is read from the pipeline's scheduler.
What is special about a class of pipelines is in its family (`models.families`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffdistill.diffusion import Denoiser, Network, PredictionType, Schedule
from diffdistill.diffusion.condition import Condition, concatenate
from diffdistill.errors import UserError, shown

from .backbone import Backbone
from .digests import pipeline_settings, weights_digest
from .families import Family, family_of
from .hub import open_pipeline
from .latents import LatentSpace
from .pipeline_folder import PipelineFolder
from .text import text_list

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Teacher:
    """A pipeline, and what training needs from it.

        prompts --embed--> condition ---+
        z ------------------------------+--> denoiser --> x0 (latents) --latents.images--> images

    Attributes:
        pipeline: the stock diffusers pipeline.
        family: what is special about its class.
        backbone: its network, frozen.
        schedule: its noise schedule, read from its scheduler.
        prediction_type: what its network predicts, read from its scheduler.
        latents: the latent space of its autoencoder.
        source: folder or hub id.
        scheduler_config: the settings of the scheduler, which are there even if `pipeline.scheduler` is None.
        no_scheduler: the reason why `pipeline.scheduler` is None, or "". Training needs no scheduler; sampling does.
    """

    pipeline: Any
    family: Family
    backbone: Backbone
    schedule: Schedule
    prediction_type: PredictionType
    latents: LatentSpace
    source: str = "pipeline"
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    no_scheduler: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent; the last two differ where images are oblong."""
        return self.family.latent_shape(self.pipeline)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the images that it draws by default."""
        _, height, width = self.latent_shape
        return height * self.latents.factor, width * self.latents.factor

    @property
    def device(self) -> torch.device:
        """Where its network is."""
        return next(self.backbone.parameters()).device

    def denoiser(self, network: Network | None = None) -> Denoiser:
        """The teacher as a score model, or another network of the same process and prediction type."""
        return Denoiser(network or self.backbone, self.schedule, self.prediction_type)

    @torch.no_grad()
    def embed(self, prompts: Iterable[str], batch_size: int = 64) -> Condition:
        """The condition of prompts, N rows, as the stock pipeline makes it.

        Args:
            prompts: N texts, at least one.
            batch_size: number of texts that the text encoders read at once.

        Raises:
            UserError: there are no prompts, there is one text in place of a list, or an item is no text.
        """
        texts = text_list(prompts)
        chunks = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        found = {f"batch {i}": self.family.embed(self.pipeline, chunk) for i, chunk in enumerate(chunks)}
        if len(found) == 1:
            return found["batch 0"]
        return concatenate(found, [len(chunk) for chunk in chunks])

    @torch.no_grad()
    def null(self) -> Condition:
        """The condition of the empty prompt, one row, which guidance leads away from in the stock pipeline."""
        return self.family.null(self.pipeline)

    def report_cut(self, prompts: Sequence[str]) -> None:
        """Write to stderr, once, how many prompts are longer than the text encoders read."""
        self.family.report_cut(self.pipeline, prompts)

    def parts(self) -> dict[str, nn.Module]:
        """All its networks by name ("unet", "vae", "text_encoder")."""
        found = {name: getattr(self.pipeline, name) for name in self.family.networks}
        return {name: network for name, network in found.items() if network is not None}

    def to(self, device: torch.device | str) -> None:
        """Move all its networks."""
        for part in self.parts().values():
            part.to(device)

    def text_encoders(self) -> dict[str, nn.Module]:
        """The networks that read prompts, by name."""
        return {name: part for name, part in self.parts().items() if name in self.family.text_encoders}

    def move_text_encoders(self, device: torch.device | str) -> None:
        """Move the text encoders alone. Once prompts are embedded, they need not be on the device of the network."""
        for part in self.text_encoders().values():
            part.to(device)

    def digest(self) -> str:
        """Hash of the schedule and of all weights, settings and tokenizers; it tells one teacher from another."""
        found = hashlib.sha256(self.prediction_type.encode())
        table = getattr(self.schedule, "alphas_cumprod", None)
        settings = vars(self.schedule) if table is None else {}
        # as float32: the last bits of float64 depend on the release of torch, since some of its cosines differ
        found.update(b"" if table is None else table.cpu().float().numpy().tobytes())
        found.update(
            json.dumps([settings, pipeline_settings(self.family, self.pipeline)], sort_keys=True, default=str).encode()
        )
        for part in self.parts().values():
            found.update(weights_digest(part).encode())
        return found.hexdigest()[:16]


def load_teacher(source: str | Path | PipelineFolder, dtype: str = "float32", variant: str | None = None) -> Teacher:
    """Load a pipeline from a folder or the hub, with frozen weights.

    Args:
        source: a folder, a hub id such as owner/name, or files that are open already.
        dtype: dtype of the network and the text encoders: float32, bfloat16 or float16. The autoencoder is always
            float32, because many autoencoders overflow in float16 and training uses their latents.
        variant: variant of the weight files, such as "fp16", for parts that have it; None for the plain files where
            there are any.

    Raises:
        UserError: there is nothing at `source`, its weights are not safetensors, the class of the pipeline or of a
            part, the prediction type or the noise schedule is not supported, or the parts do not fit each other.
    """
    if dtype not in DTYPES:
        raise UserError(f"the teacher's dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if not isinstance(source, str | Path | PipelineFolder):
        raise UserError(f"the teacher is {shown(source)}; it must be a folder or a hub id")
    files = source if isinstance(source, PipelineFolder) else open_pipeline(source, variant)
    source = files.source
    family = family_of(files.index.get("_class_name"), source)
    wanted = {name: part for name, part in family.parts.items() if not (part.optional and files.lacks(name))}
    for name, part in wanted.items():  # all parts are checked before one is loaded
        if part.tokenizer:
            files.path(f"{name}/tokenizer_config.json")
        else:
            files.check_class(name, part)
            files.variant(name)
    files.check_variant(name for name, part in wanted.items() if not part.tokenizer)
    scheduler, problem = files.load_scheduler()
    written = files.read_json("scheduler/scheduler_config.json")
    config = {**written, **({} if scheduler is None else scheduler.config)}
    try:
        schedule, kind = family.process(config, written)
    except ValueError as error:
        why = f"; its scheduler cannot be built ({problem})" if problem else ""
        raise UserError(f"teacher {source}: {error}{why}") from error
    parts: dict[str, Any] = dict.fromkeys(family.parts)
    for name, part in wanted.items():
        if part.tokenizer:
            parts[name] = files.load_tokenizer(name, part)
        else:
            parts[name] = files.load(name, part, torch.float32 if name == family.autoencoder else DTYPES[dtype])
    try:
        latents = LatentSpace(parts[family.autoencoder])
    except UserError as error:
        raise UserError(f"teacher {source}: {error}") from error
    channels, _ = family.channels(parts[family.network].config)
    if channels != latents.channels:
        raise UserError(f"teacher {source}: its network takes {channels} channels, but a latent has {latents.channels}")
    try:
        family.check_parts(parts)
        pipeline = family.assemble(parts, scheduler, files.index)
        family.latent_shape(pipeline)
    except ValueError as error:
        raise UserError(f"teacher {source}: {error}") from error
    backbone = family.backbone(parts[family.network])
    return Teacher(pipeline, family, backbone, schedule, kind, latents, source, config, problem)
