"""A text-to-image model of two times: its folder, its sampler, and the stock pipeline that one step of it is.

    model_index.json   {"_class_name": "AnyStepPipeline", "schedule": {...}, "reach": ..., "reach_of_one_step": ...,
                       "finest_steps": ..., "eta": ...}       the last two where they are not their defaults
    unet/              a UNet2DConditionModel with a second time embedding (`models.two_times`)
    vae/ text_encoder/ tokenizer/                                                                 stock

A model that began as a Stable-Diffusion-class teacher also has "process" there, the settings of the teacher's schedule:
its UNet answers in the teacher's terms (`diffusion.vp_on_straight_path`).

diffusers knows no such pipeline and says so; its files are safetensors and JSON all the same. At one step the second
time is fixed, and `export_stock_one_step` writes a stock pipeline that needs no code of ours.
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
        reach: how far into a step the second time lies, `diffusion.any_step`; `reach_of_one_step` where there is one
            step alone.
        finest_steps: with more steps than these, 2 or more, the second time lies about as far from the first as with
            these, past a step's end but not below 0; None for no limit.
        eta: noise added while sampling, a share of the ancestral sampler's from 0 (none) to 1; none in a last step, so
            that one step is always deterministic.
    """

    pipeline: Any
    network: TwoTimeUNet
    schedule: FlowSchedule
    reach: float = 1.0
    reach_of_one_step: float = 1.0
    finest_steps: int | None = None
    eta: float = 0.0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width; the last two differ where pictures are oblong."""
        return FAMILY.latent_shape(self.pipeline)

    @property
    def latents(self) -> LatentSpace:
        """Its autoencoder."""
        return LatentSpace(self.pipeline.vae)

    def report_cut(self, prompts: Sequence[str]) -> None:
        """Say on stderr, once, how many prompts are longer than the text encoder reads."""
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
        """Latents of noise (B, C, h, w); cond (B, L, D) or (B, L) token ids, null the same or one row.

        Guidance keeps the energy of the conditional prediction (EP-CFG); 1 is unguided. Where eta, by default the
        model's, is above 0, picture i is given the noise of generators[i].
        """
        denoiser = TwoTimeDenoiser(self.network, self.schedule)
        longer = max(1.0, steps / self.finest_steps) if self.finest_steps else 1.0  # told than the steps are
        return any_step(
            lambda x, t, s: guided_any_step(denoiser, x, t, s, cond, null, guidance),
            noise,
            self.schedule,
            steps,
            target_fraction=self.reach_of_one_step if steps == 1 else self.reach * longer,
            eta=self.eta if eta is None else eta,
            generator=generators,
        )

    @torch.no_grad()
    def pictures(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, eta: float | None = None
    ) -> Tensor:
        """(B, 3, H, W) in [0, 1]; picture i starts from noise of `torch.Generator().manual_seed(seeds[i])`.

        The same noise as a stock pipeline draws of that generator; where eta is above 0, later noise is what the
        generator draws next.
        """
        device = self.pipeline.text_encoder.device
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        draws = [torch.randn((1, *self.latent_shape), generator=generator) for generator in generators]
        cond, null = FAMILY.embed(self.pipeline, list(prompts)), FAMILY.null(self.pipeline)
        latents = self.sample(cond, null, torch.cat(draws).to(device), steps, guidance, eta, generators)
        return self.latents.images(latents)

    def to(self, device: str) -> None:
        for part in FAMILY.networks:
            getattr(self.pipeline, part).to(device)

    def digest(self) -> str:
        """Hash of tokenizer, weights and settings, and of how they are sampled: tells one model from another."""
        found = hashlib.sha256(json.dumps(_index(self)).encode())
        found.update(json.dumps(pipeline_settings(FAMILY, self.pipeline), sort_keys=True, default=str).encode())
        for part in FAMILY.networks:
            found.update(weights_digest(getattr(self.pipeline, part)).encode())
        return found.hexdigest()[:16]


def is_any_step(source: str | Path) -> bool:
    """Whether a folder holds such a model."""
    try:
        return bool(json.loads((Path(source) / "model_index.json").read_text())["_class_name"] == CLASS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_any_step(model: AnyStepModel, folder: Path) -> None:
    """Write the folder; it may exist."""
    for name in FAMILY.parts:
        getattr(model.pipeline, name).save_pretrained(folder / name)
    make_portable(model.pipeline.tokenizer, folder)
    (folder / "model_index.json").write_text(json.dumps(_index(model), indent=2) + "\n")


def load_any_step(source: str | Path) -> AnyStepModel:
    """Load a folder that `save_any_step` wrote, frozen; safetensors only.

    Raises:
        UserError: another kind of folder, or parts that are missing or torn.
    """
    from . import two_times

    folder = Path(source)
    if not is_any_step(folder):
        raise UserError(f"no any-step model at {folder}: its model_index.json should name {CLASS}")
    files = open_pipeline(str(folder))
    index = files.index
    try:
        schedule = FlowSchedule(**index["schedule"])
        process = VPOnStraightPath(index["process"]) if "process" in index else None
        reach, one = float(index["reach"]), float(index["reach_of_one_step"])
        finest, eta = index.get("finest_steps"), float(index.get("eta", 0))
        if not (0 <= reach <= 1 and 0 <= one <= 1 and (finest is None or (type(finest) is int and finest >= 2))):
            raise ValueError(f"reach {reach} and {one} should be in [0, 1], finest_steps {finest!r} 2 or more, or null")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta {eta} should be in [0, 1]")
        unet = two_times.load_two_time_unet(folder / "unet")
        vae, text_encoder = (files.load(part, FAMILY.parts[part]) for part in ("vae", "text_encoder"))
        tokenizer = files.load_tokenizer("tokenizer", FAMILY.parts["tokenizer"])
        fit_length(tokenizer, text_encoder)
        pipeline = stock_pipeline(unet, vae, text_encoder, tokenizer)
        FAMILY.latent_shape(pipeline)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"no any-step model at {folder}: {first_line(error)}") from error
    network = two_times.TwoTimeUNet(unet, None, process, schedule.num_train_timesteps)
    return AnyStepModel(pipeline, network, schedule, reach, one, finest, eta)


@torch.no_grad()
def export_stock_one_step(model: AnyStepModel, folder: Path) -> None:
    """Write a stock pipeline whose one step, unguided, is the model's.

    Its noise x has unit variance; the model's step is x - V(x, 1, s), with t - s in the time embedding's bias.

    A UNet told times of the straight path: EulerDiscreteScheduler at sigma = 1 computes x - 1 network(x / sqrt 2,
    time); so sqrt 2 goes into the first convolution, and the schedule's last time is the one the network knows t = 1
    by. One that began as a teacher: x - V is its x0-prediction of x at its last time, DDIMScheduler's one step.
    """
    from diffusers import EulerDiscreteScheduler

    from . import two_times

    last, process = model.schedule.num_train_timesteps, model.network.process
    unet = two_times.fold_interval(model.network.inner, model.reach_of_one_step * last)
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
        "reach": model.reach,
        "reach_of_one_step": model.reach_of_one_step,
    }
    if model.finest_steps is not None:
        index["finest_steps"] = model.finest_steps
    if model.eta:
        index["eta"] = model.eta
    return index if process is None else {**index, "process": process.settings}
