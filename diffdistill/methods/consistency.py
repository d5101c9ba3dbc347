"""Consistency distillation: a guided teacher's paths into a few steps (arXiv 2303.01469; the recipe of 2310.04378).

    x0, eps --> x_t --student--> f(x_t, t)     towards     f_average(x_r, r),  x_r one guided teacher step from x_t

Notable:
- data are captioned pictures; t lies on a grid of `grid` times, and r one place before it;
- guidance is one scale, as in LCM-LoRA, and not told to the student: the product is a stock StableDiffusionPipeline
  with an LCMScheduler, sampled unguided. LCM itself embeds a scale that it draws for each sample;
- c_skip and c_out are those that LCMScheduler applies, with the same `boundary_scale`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffdistill.diffusion import Condition, Denoiser, move, take_rows
from diffdistill.distill import SampleRandom
from diffdistill.distill.consistency import Boundary, consistency_loss, consistency_sample, skipped_times
from diffdistill.errors import UserError
from diffdistill.models.attention import set_attention
from diffdistill.models.backbone import full_copy
from diffdistill.models.ema import averaged_copy, follow
from diffdistill.models.export import export_student, halve
from diffdistill.models.families.vp import consistency_scheduler
from diffdistill.models.stock_check import load_checked_teacher

from .base import FREE_ARGUMENTS, Batch, Loss, Method, OptimizerSettings, Phase, Validation, check_guidance, unwrap
from .content import of_pictures, of_teacher


class Consistency(Method):
    """Distil a Stable-Diffusion-class teacher into a consistency model; the defaults are LCM's.

    Args:
        teacher: pipeline folder or hub id.
        data: folder laid out as assets/emoji.
        guidance_scale: the teacher's.
        grid: times in training, which must divide the schedule's; sampling steps are taken from it.
        boundary_scale: tau = boundary_scale * t in c_skip and c_out.
        huber: c of the pseudo-Huber distance.
        average_decay: of the averaged network that is aimed at.
        learning_rate: AdamW's.
        betas: AdamW's.
        adam_eps: AdamW's eps, which counts beside the gradient's size; see docs/methods/README.md.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
    """

    averaged = "student"
    free = FREE_ARGUMENTS

    def __init__(
        self,
        teacher: str,
        data: str = "assets/emoji",
        guidance_scale: float = 8.0,
        grid: int = 50,
        boundary_scale: float = 10.0,
        huber: float = 1e-3,
        average_decay: float = 0.95,
        learning_rate: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        if not 0 <= average_decay < 1 or not huber > 0 or not boundary_scale > 0:
            raise UserError(
                f"average_decay {average_decay} must be from 0 to below 1; huber {huber} and boundary_scale "
                f"{boundary_scale} above 0"
            )
        from diffdistill.data.emoji import load_emoji  # here, so that methods without pictures need none

        pictures = load_emoji(data)
        self.teacher = load_checked_teacher(teacher)
        unet = self.teacher.backbone.inner.to(memory_format=torch.channels_last)
        set_attention(unet, attention, "cuda" if torch.cuda.is_available() else "cpu")
        self.schedule = self.teacher.schedule
        try:
            skipped_times(self.schedule, torch.zeros(1), grid)
        except ValueError as error:
            raise UserError(f"grid: {error}") from error
        if self.teacher.prediction_type == "eps" and not self.schedule.alpha(torch.tensor(self.schedule.last)) > 0:
            raise UserError("the teacher predicts noise and its last time holds no signal: one step says nothing of x0")
        self.guidance_scale, self.grid, self.huber, self.average_decay = guidance_scale, grid, huber, average_decay
        self.boundary = Boundary(scale=boundary_scale)
        self.captions = pictures.captions
        self.teacher.report_cut(self.captions)
        self.latents = self.teacher.latents.encode_bytes(pictures.images)
        if self.latents.shape[1:] != self.teacher.latent_shape:
            found, wanted = tuple(self.latents.shape[1:]), tuple(self.teacher.latent_shape)
            raise UserError(f"data {data}: its latents have shape {found}, the teacher's {wanted}")
        self.embeddings: Condition = self.teacher.embed(self.captions)
        self.null: Condition = self.teacher.null()
        self.content = {"teacher": of_teacher(self.teacher), "data": of_pictures(pictures)}
        student = full_copy(self.teacher.backbone)
        self.networks = {"student": student, "average": averaged_copy(student)}
        self.optimizers = {"student": OptimizerSettings(learning_rate, betas, eps=adam_eps)}
        self.half_export = half_export
        self.frozen = self.teacher.parts()

    def __len__(self) -> int:
        return len(self.captions)

    def prepare(self, device: torch.device | str) -> None:
        super().prepare(device)
        self.latents = self.latents.to(device)
        self.embeddings, self.null = move(self.embeddings, device), move(self.null, device)

    def enable_gradient_checkpointing(self) -> None:
        unwrap(self.networks["student"]).inner.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        return {"x0": self.latents[list(records)], "cond": take_rows(self.embeddings, records)}

    def begin_step(self, step: int) -> None:
        if step:  # before the first step the average is the student
            follow(unwrap(self.networks["average"]), unwrap(self.networks["student"]), self.average_decay, step)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._loss)]

    def _denoiser(self, network: Any) -> Denoiser:
        return Denoiser(network, self.schedule, self.teacher.prediction_type)

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        t, r = skipped_times(self.schedule, random.uniform("time"), self.grid)
        loss = consistency_loss(
            self._denoiser(self.networks["student"]),
            self._denoiser(unwrap(self.networks["average"])),
            self.teacher.denoiser(),
            batch["x0"],
            t,
            r,
            random.normal("noise", self.teacher.latent_shape),
            batch["cond"],
            self.null,
            self.guidance_scale,
            boundary=self.boundary,
            huber=self.huber,
        )
        return loss, {}

    def validate(self) -> Validation:
        """32 captions spread over the set, one step each, always the same noise."""
        rows = [i * len(self) // 32 for i in range(32)]
        z = SampleRandom(0, range(32), self.device).normal("preview", self.teacher.latent_shape)
        student = self._denoiser(unwrap(self.networks["student"]))
        cond = take_rows(self.embeddings, rows)
        return Validation(
            self.teacher.latents.images(consistency_sample(student, z, [self.schedule.last], cond, self.boundary))
        )

    def export(self, folder: Path) -> None:
        scheduler = consistency_scheduler(self.teacher, self.grid, self.boundary.scale)
        export_student(self.teacher, copy.deepcopy(unwrap(self.networks["student"]).inner), scheduler, folder)
        if self.half_export:
            halve(folder)
