"""What methods share that distil a Stable-Diffusion-class teacher into a student of one step, from prompts alone.

    z --student at T*--> x0 --> the method's loss

Notable:
- student: x0 = x0-prediction of the teacher's network at time T* for z ~ N(0, I). T* is the last time, or the time
  whose sigma/alpha is `noise_ratio`; alpha and sigma are read from the schedule;
- a method says its phases and losses. Here are its networks, prompts, times, pictures and export.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition, Denoiser, move, take_rows
from diffdistill.distill import RESIDUALS, JudgingOptions, SampleRandom, score_distillation_loss, time_range
from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.backbone import full_copy
from diffdistill.models.export import export_one_step, halve
from diffdistill.models.stock_check import load_checked_teacher

from .base import FREE_ARGUMENTS, Batch, Loss, Method, OptimizerSettings, Validation, unwrap
from .content import digest, of_teacher

CACHED_BYTES = 1 << 30  # prompt embeddings are kept up to this; beyond it they are made for each batch


def check_eta(**values: float) -> None:
    """Raise UserError for a shift of ASD's later time that leads back, or nowhere."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}; the later time is not before t, so it is a number from 0 up")


class OneStep(Method):
    """A frozen teacher, a student that starts as its copy, and prompts.

    Args:
        teacher, prompts: pipeline folder or hub id; text file, one prompt a line.
        student_learning_rate, betas, adam_eps: AdamW's.
        noise_ratio: sigma/alpha of the time at which the student is fed; None for the last time.
        t_min, t_max: the times judged, as fractions; t_max not included.
        t_min_final, t_max_final: where they arrive at the end of the run, linearly; None for where they started.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.

    Raises:
        UserError: times out of order, no noise_ratio above 0, or a teacher that cannot be fed at the time asked for.
    """

    averaged = "student"
    free = FREE_ARGUMENTS

    def __init__(
        self,
        teacher: str,
        prompts: str,
        *,
        student_learning_rate: float,
        betas: tuple[float, float],
        adam_eps: float = 1e-8,
        noise_ratio: float | None,
        t_min: float,
        t_max: float,
        t_min_final: float | None = None,
        t_max_final: float | None = None,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        if not 0.0 <= t_min < t_max <= 1.0:
            raise UserError(f"t_min {t_min} and t_max {t_max} must be in order and in [0, 1]")
        if noise_ratio is not None and not 0 < noise_ratio < math.inf:
            raise UserError(f"noise_ratio is {noise_ratio}; sigma/alpha is a number above 0, or null for the last time")
        self.t_min, self.t_max = t_min, t_max
        self.t_min_final = t_min if t_min_final is None else t_min_final
        self.t_max_final = t_max if t_max_final is None else t_max_final
        if not 0.0 <= self.t_min_final <= t_min:
            raise UserError(f"t_min_final {t_min_final} must be at most t_min {t_min} and not below 0")
        if not self.t_min_final < self.t_max_final <= t_max:
            low = f"t_min {t_min}" if t_min_final is None else f"t_min_final {t_min_final}"
            raise UserError(f"t_max_final {t_max_final} must be above {low} and at most t_max {t_max}")
        self.prompts = read_prompts(prompts)
        self.teacher = load_checked_teacher(teacher)
        inner = self.teacher.backbone.inner.to(memory_format=torch.channels_last)
        set_attention(inner, attention, "cuda" if torch.cuda.is_available() else "cpu")
        self.schedule = cast(Any, self.teacher.schedule)
        for at_least, below in ((t_min, t_max), (self.t_min_final, self.t_max_final)):
            try:
                self.schedule.timestep(torch.zeros(1), at_least, below)
            except ValueError as error:
                raise UserError(f"t_min {at_least}, t_max {below}: {error}") from error
        last = int(self.schedule.last)
        self.t_star = last if noise_ratio is None else int(self.schedule.time_at(noise_ratio))
        if self.teacher.prediction_type == "eps" and not self.schedule.alpha(torch.tensor(self.t_star)) > 0:
            raise UserError(
                "the teacher predicts noise and its last time holds no signal, so one step says nothing "
                "of x0; set noise_ratio, 2.5 say"
            )
        self.half_export = half_export
        self.teacher.report_cut(self.prompts)
        self.null: Condition = self.teacher.null()
        parts = self.null.values() if isinstance(self.null, Mapping) else [self.null]
        small = len(self.prompts) * sum(0 if part is None else part.nbytes for part in parts) <= CACHED_BYTES
        self.embeddings: Condition = self.teacher.embed(self.prompts) if small else None
        self.content = {"teacher": of_teacher(self.teacher), "prompts": digest(self.prompts)}
        self.networks = {"student": full_copy(self.teacher.backbone)}
        self.optimizers = {"student": OptimizerSettings(student_learning_rate, betas, eps=adam_eps)}
        self.frozen = self.teacher.parts()

    def __len__(self) -> int:
        return len(self.prompts)

    def prepare(self, device: torch.device | str) -> None:
        super().prepare(device)
        self.null, self.embeddings = move(self.null, device), move(self.embeddings, device)

    def enable_gradient_checkpointing(self) -> None:
        for network in self.networks.values():
            unwrap(network).inner.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        return {"cond": self._embed(records)}

    def _embed(self, records: Sequence[int]) -> Condition:
        """The condition of prompts, from the cache or, where the list is too long for one, from the text encoder."""
        if self.embeddings is not None:
            return take_rows(self.embeddings, records)
        return self.teacher.embed([self.prompts[i] for i in records])

    # ---- for the losses ---------------------------------------------------------------------------------------

    def _denoiser(self, network: Any) -> Denoiser:
        return Denoiser(network, self.schedule, self.teacher.prediction_type)

    def _generate(self, network: Any, z: Tensor, cond: Condition) -> Tensor:
        t = torch.full((len(z),), self.t_star, device=z.device, dtype=torch.long)
        return self._denoiser(network)(z, t, cond).x0

    def _sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 as the student is trained to make it; another `draw` is from another noise."""
        return self._generate(network, random.normal(f"z{draw}", self.teacher.latent_shape), cond)

    def _judge(self, x_t: Tensor, time: Tensor, cond: Any) -> Tensor:
        """The teacher's network."""
        return self.teacher.backbone(x_t, time, cond)

    def _range(self) -> tuple[float, float]:
        """The times judged at this point of the run."""
        first, final = (self.t_min, self.t_max), (self.t_min_final, self.t_max_final)
        return first if first == final else time_range(self.progress, first, final)

    def _distil(
        self,
        residual: str,
        weight: str,
        x0: Tensor,
        cond: Condition,
        random: SampleRandom,
        guidance_scale: float,
        *,
        fake: Any = None,
        fake_guidance_scale: float = 1.0,
        eta: float = 0.1,
    ) -> Loss:
        """`score_distillation_loss` at a time drawn from the present range; eta: of a later time, for rows with one."""
        low, high = self._range()
        t = self.schedule.timestep(random.uniform("time"), low, high)
        later = None
        if "later" in RESIDUALS[residual].needs:
            later = self.schedule.later(t, random.uniform("later"), eta, low)
        return score_distillation_loss(
            residual,
            weight,
            self._denoiser(self._judge),
            x0,
            t,
            random.normal("noise", self.teacher.latent_shape),
            cond,
            self.null,
            guidance_scale,
            fake=None if fake is None else self._denoiser(fake),
            fake_guidance_scale=fake_guidance_scale,
            options=JudgingOptions(later_t=later),
        )

    # ---- product ----------------------------------------------------------------------------------------------

    def _draw(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 as a user gets it, in all the student's steps."""
        return self._generate(network, random.normal("preview", self.teacher.latent_shape), cond)

    def validate(self) -> Validation:
        """32 prompts spread over the list, always the same noise."""
        rows = [i * len(self.prompts) // 32 for i in range(32)]
        random = SampleRandom(0, range(32), self.device)
        x0 = self._draw(unwrap(self.networks["student"]), random, self._embed(rows))
        return Validation(self.teacher.latents.images(x0))

    def export(self, folder: Path) -> None:
        self._write(copy.deepcopy(unwrap(self.networks["student"]).inner), folder)
        if self.half_export:
            halve(folder)

    def _write(self, unet: Any, folder: Path) -> None:
        export_one_step(self.teacher, unet, self.t_star, folder)
