"""A text-to-image model of two times: its folder, its sampler, and the stock pipeline that one step of it is.

    model_index.json   {"_class_name": "AnyStepPipeline", "schedule": {...}, "target_fraction": ...,
                       "one_step_target_fraction": ..., "finest_steps": ..., "eta": ...}
                       the last two are there only if they differ from their default values
    unet/              a UNet2DConditionModel with a second time embedding (`models.two_times`)
    vae/ text_encoder/ tokenizer/     the parts of a stock pipeline

The index of a model that began as a Stable-Diffusion-class teacher also has the key "process", the settings of the
teacher's schedule. The UNet of such a model predicts what the teacher's UNet predicts, in the teacher's schedule
(`diffusion.vp_on_straight_path`).

diffusers has no such pipeline class and refuses the folder; its files are safetensors and JSON all the same. With one
step the second time is fixed, so `export_stock_one_step` writes a stock pipeline that needs no code of this package.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffdistill.diffusion import FlowSchedule
from diffdistill.diffusion.any_step import TwoTimeDenoiser, any_step, guided_any_step
from diffdistill.diffusion.vp_on_straight_path import VPOnStraightPath
from diffdistill.errors import UserError

from .digests import pipeline_settings, weights_digest
from .export import export_one_step
from .families.stable_diffusion import StableDiffusion, stock_pipeline
from .hub import open_pipeline
from .latents import LatentSpace
from .pipeline_folder import first_line
from .portable_text import make_portable
from .teacher import Teacher
from .text import fit_length, report_cut

if TYPE_CHECKING:  # it takes diffusers, which a help text does without
    from .two_times import TwoTimeUNet

CLASS = "AnyStepPipeline"
FAMILY = StableDiffusion()


@dataclass
class AnyStepModel:
    """Parts (unet, vae, text_encoder, tokenizer), the network of two times, and how it is sampled.

    Attributes:
        pipeline: holds the parts.
        network: the network of two times around the pipeline's UNet.
        schedule: the straight path.
        target_fraction: where the second time lies in a step, from 0 (its start) to 1 (its end); see
            `diffusion.any_step`.
        one_step_target_fraction: the same for sampling in a single step.
        finest_steps: a number of steps, 2 or more. With more steps than these, the second time lies about as far from
            the first as it does with these: past the end of a step, but not below 0. None for no limit.
        eta: noise added while sampling, as a fraction of the ancestral sampler's, from 0 (none) to 1. The last step
            adds none, so a single step is always deterministic.
    """

    pipeline: Any
    network: TwoTimeUNet
    schedule: FlowSchedule
    target_fraction: float = 1.0
    one_step_target_fraction: float = 1.0
    finest_steps: int | None = None
    eta: float = 0.0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent; height and width differ for models of oblong images."""
        return FAMILY.latent_shape(self.pipeline)

    @property
    def latents(self) -> LatentSpace:
        """The latent space of its autoencoder."""
        return LatentSpace(self.pipeline.vae)

    def report_cut(self, prompts: Sequence[str]) -> None:
        """Write to stderr, once, how many prompts are longer than the text encoder reads."""
        report_cut(self.pipeline.tokenizer, prompts)

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor,
        null: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        eta: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Latents (B, C, h, w), sampled from noise of that shape.

        Args:
            cond: prompt embeddings (B, L, D) or token ids (B, L).
            null: the same of the empty prompt, B rows or one.
            noise: (B, C, h, w), of unit variance.
            steps: 1 or more.
            guidance: scale; it keeps the energy of the conditional prediction (EP-CFG). 1 is unguided.
            eta: in place of the model's.
            generators: one per image; where eta is above 0, they draw the noise that is added.
        """
        denoiser = TwoTimeDenoiser(self.network, self.schedule)
        # how much longer the intervals t - s are than they would be without `finest_steps`
        longer = max(1.0, steps / self.finest_steps) if self.finest_steps else 1.0
        return any_step(
            lambda x, t, s: guided_any_step(denoiser, x, t, s, cond, null, guidance),
            noise,
            self.schedule,
            steps,
            target_fraction=self.one_step_target_fraction if steps == 1 else self.target_fraction * longer,
            eta=self.eta if eta is None else eta,
            generator=generators,
        )

    @torch.no_grad()
    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, eta: float | None = None
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]; image i starts from noise of `torch.Generator().manual_seed(seeds[i])`.

        A stock pipeline draws the same noise from that generator. Where eta is above 0, the generator then draws the
        noise of each step.
        """
        device = self.pipeline.text_encoder.device
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        draws = [torch.randn((1, *self.latent_shape), generator=generator) for generator in generators]
        cond, null = FAMILY.embed(self.pipeline, list(prompts)), FAMILY.null(self.pipeline)
        latents = self.sample(cond, null, torch.cat(draws).to(device), steps, guidance, eta, generators)
        return self.latents.images(latents)

    def to(self, device: str) -> None:
        """Move all its networks."""
        for part in FAMILY.networks:
            getattr(self.pipeline, part).to(device)

    def digest(self) -> str:
        """Hash of the tokenizer, weights, settings and how they are sampled: tells one model from another."""
        found = hashlib.sha256(json.dumps(_index(self)).encode())
        found.update(json.dumps(pipeline_settings(FAMILY, self.pipeline), sort_keys=True, default=str).encode())
        for part in FAMILY.networks:
            found.update(weights_digest(getattr(self.pipeline, part)).encode())
        return found.hexdigest()[:16]


def is_any_step(source: str | Path) -> bool:
    """Whether a folder holds an any-step model, by its model_index.json."""
    try:
        return bool(json.loads((Path(source) / "model_index.json").read_text())["_class_name"] == CLASS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_any_step(model: AnyStepModel, folder: Path) -> None:
    """Write the folder of a model; it may exist."""
    for name in FAMILY.parts:
        getattr(model.pipeline, name).save_pretrained(folder / name)
    make_portable(model.pipeline.tokenizer, folder)
    (folder / "model_index.json").write_text(json.dumps(_index(model), indent=2) + "\n")


def load_any_step(source: str | Path) -> AnyStepModel:
    """Load a folder that `save_any_step` wrote, with frozen weights, from safetensors alone.

    Raises:
        UserError: the folder is of another kind, a key of its index is missing or wrong, or parts are missing or torn.
    """
    from . import two_times

    folder = Path(source)
    if not is_any_step(folder):
        raise UserError(f"there is no any-step model at {folder}: its model_index.json should name {CLASS}")
    files = open_pipeline(str(folder))
    index = files.index
    for key in ("schedule", "target_fraction", "one_step_target_fraction"):
        if key not in index:
            raise UserError(f"there is no any-step model at {folder}: its model_index.json has no {key}")
    try:
        schedule = FlowSchedule(**index["schedule"])
        process = VPOnStraightPath(index["process"]) if "process" in index else None
        several, one = float(index["target_fraction"]), float(index["one_step_target_fraction"])
        finest, eta = index.get("finest_steps"), float(index.get("eta", 0))
        for key, value in (("target_fraction", several), ("one_step_target_fraction", one), ("eta", eta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}; it must be in [0, 1]")
        if not (finest is None or (type(finest) is int and finest >= 2)):
            raise ValueError(f"finest_steps is {finest!r}; it must be a whole number from 2, or null")
        unet = two_times.load_two_time_unet(folder / "unet")
        vae, text_encoder = (files.load(part, FAMILY.parts[part]) for part in ("vae", "text_encoder"))
        tokenizer = files.load_tokenizer("tokenizer", FAMILY.parts["tokenizer"])
        fit_length(tokenizer, text_encoder)
        pipeline = stock_pipeline(unet, vae, text_encoder, tokenizer)
        FAMILY.latent_shape(pipeline)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"there is no any-step model at {folder}: {first_line(error)}") from error
    network = two_times.TwoTimeUNet(unet, None, process, schedule.num_train_timesteps)
    return AnyStepModel(pipeline, network, schedule, several, one, finest, eta)


@torch.no_grad()
def export_stock_one_step(model: AnyStepModel, folder: Path) -> None:
    """Write a stock pipeline whose one step, unguided, equals the model's.

    The noise x has unit variance, and the model's step is x - V(x, 1, s). The interval t - s is fixed, so its embedding
    goes into the bias of the stock time embedding.

    - A UNet on times of the straight path: EulerDiscreteScheduler at sigma = 1 computes x - network(x / sqrt 2, time).
      So sqrt 2 goes into the first convolution, and the schedule's last time is the network's time for t = 1.
    - A UNet that began as a teacher: x - V is its x0-prediction of x at its last time, which is the one step of
      DDIMScheduler.
    """
    from diffusers import EulerDiscreteScheduler

    from . import two_times

    last, process = model.schedule.num_train_timesteps, model.network.process
    unet = two_times.fold_interval(model.network.inner, model.one_step_target_fraction * last)
    p = model.pipeline
    if process is not None:
        teacher = Teacher(p, FAMILY, FAMILY.backbone(unet), process.schedule, process.kind, model.latents)
        export_one_step(teacher, unet, process.schedule.last, folder)
        return
    unet.conv_in.weight *= math.sqrt(2)
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=last + 1,
        trained_betas=[0.5] + [0.0] * last,  # alpha^2 = sigma^2: sigma / alpha = 1, without rounding
        prediction_type="epsilon",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    FAMILY.save(FAMILY.replaced(p, unet, scheduler), folder)


def _index(model: AnyStepModel) -> dict[str, Any]:
    schedule, process = model.schedule, model.network.process
    index = {
        "_class_name": CLASS,
        "schedule": {"num_train_timesteps": schedule.num_train_timesteps, "shift": schedule.shift},
        "target_fraction": model.target_fraction,
        "one_step_target_fraction": model.one_step_target_fraction,
    }
    if model.finest_steps is not None:
        index["finest_steps"] = model.finest_steps
    if model.eta:
        index["eta"] = model.eta
    return index if process is None else {**index, "process": process.settings}
