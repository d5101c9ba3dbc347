"""Consistency distillation of a guided teacher into a few steps (arXiv 2303.01469, by the recipe of 2310.04378).

    x0, eps --> x_t --student--> f(x_t, t)     towards     f_average(x_r, r),  x_r one guided teacher step from x_t

Notable:
- the data are captioned images. t is on a grid of `grid` times, and r is one place before t;
- guidance has one scale, as in LCM-LoRA, and the student is not conditioned on it. The product is a stock pipeline with
  an LCMScheduler that is sampled unguided. LCM itself draws a scale for each sample and embeds it;
- c_skip and c_out are those of LCMScheduler with the same `boundary_scale`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.data.captioned import CaptionedData, load_captioned
from diffdistill.diffusion import Condition
from diffdistill.distill import Boundary, SampleRandom, consistency_loss, consistency_sample, skipped_times
from diffdistill.errors import UserError
from diffdistill.models.backbone import full_copy
from diffdistill.models.cached_latents import encoded
from diffdistill.models.ema import averaged_copy, follow
from diffdistill.models.export import export_student, halve
from diffdistill.models.prompt_table import PromptTable, embed_prompts

from .base import (
    FREE_ARGUMENTS,
    Batch,
    Loss,
    Method,
    OptimizerSettings,
    Phase,
    Validation,
    check_guidance,
    open_teacher,
    unwrap,
)
from .content import of_data, of_teacher
from .settings import ExportSettings, TeacherSettings
from .student import require_variance_preserving


class Consistency(Method):
    """Distil a teacher into a consistency model; the defaults are LCM's.

    Args:
        teacher: the model that is distilled, of a variance-preserving schedule.
        data: captioned images.
        guidance_scale: the teacher's guidance.
        grid: number of times in training, which must divide that of the schedule; sampling steps are taken from these.
        boundary_scale: tau = boundary_scale * t in c_skip and c_out.
        huber: c of the pseudo-Huber distance.
        ema_decay: decay of the averaged network, which makes the targets.
        optimizer: the student's optimiser.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or the teacher has another kind of schedule.
    """

    averaged = "student"
    free = FREE_ARGUMENTS

    def __init__(
        self,
        teacher: TeacherSettings,
        data: CaptionedData = CaptionedData(),
        guidance_scale: float = 8.0,
        grid: int = 50,
        boundary_scale: float = 10.0,
        huber: float = 1e-3,
        ema_decay: float = 0.95,
        optimizer: OptimizerSettings = OptimizerSettings(1e-6),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        if not 0 <= ema_decay < 1 or not huber > 0 or not boundary_scale > 0:
            raise UserError(
                f"ema_decay is {ema_decay}, huber {huber} and boundary_scale {boundary_scale}; ema_decay must be from "
                "0 to below 1, and the others above 0"
            )
        self.teacher = open_teacher(teacher)
        require_variance_preserving(self.teacher, "Consistency")
        self.schedule = self.teacher.schedule
        try:
            skipped_times(self.schedule, torch.zeros(1), grid)
        except ValueError as error:
            raise UserError(f"grid: {error}") from error
        if self.teacher.prediction_type == "eps" and not self.schedule.alpha(torch.tensor(self.schedule.last)) > 0:
            raise UserError(
                "the teacher predicts noise, and there is no signal at its last time, so one step does not determine x0"
            )
        images = load_captioned(data, self.teacher.image_size)
        self.guidance_scale, self.grid, self.huber, self.ema_decay = guidance_scale, grid, huber, ema_decay
        self.boundary = Boundary(scale=boundary_scale)
        self.captions = images.captions
        self.teacher.report_cut(self.captions)
        self.content = {"teacher.source": of_teacher(self.teacher), **of_data(data, images)}
        student = full_copy(self.teacher.backbone)
        self.networks = {"student": student, "average": averaged_copy(student)}
        self.optimizers = {"student": optimizer}
        self.frozen = self.teacher.parts()
        self.half = export.half
        self.null: Condition = None
        self._images: Tensor | None = images.images
        self.latents = torch.empty(0)
        self.table: PromptTable | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def prepare(self, device: torch.device | str) -> None:
        """Move the teacher to the device, and encode the images and embed the captions there."""
        self.device = torch.device(device)
        self.teacher.to(self.device)
        if self._images is not None:
            self.latents, self._images = encoded(self.teacher.latents, self._images), None
        self.null, self.table = self.teacher.null(), embed_prompts(self.teacher, self.captions, self.device)
        if not self.table.on_demand:
            self.teacher.move_text_encoders("cpu")

    def enable_gradient_checkpointing(self) -> None:
        unwrap(self.networks["student"]).inner.enable_gradient_checkpointing()

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        assert self.table is not None, "prepare(device) comes first"
        return {"x0": self.latents[list(records)].to(self.device), "cond": self.table.rows(list(records))}

    def begin_step(self, step: int) -> None:
        if step > 0:
            follow(unwrap(self.networks["average"]), unwrap(self.networks["student"]), self.ema_decay, step)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        t, r = skipped_times(self.schedule, random.uniform("time"), self.grid)
        loss = consistency_loss(
            self.teacher.denoiser(self.networks["student"]),
            self.teacher.denoiser(unwrap(self.networks["average"])),
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
        """Images of 32 captions spread over the set, each in one step, always from the same noise."""
        assert self.table is not None, "prepare(device) comes first"
        rows = [i * len(self) // 32 for i in range(32)]
        z = SampleRandom(0, range(32), self.device).normal("preview", self.teacher.latent_shape)
        student = self.teacher.denoiser(unwrap(self.networks["student"]))
        x0 = consistency_sample(student, z, [self.schedule.last], self.table.rows(rows), self.boundary)
        return Validation(self.teacher.latents.images(x0))

    def export(self, folder: Path) -> None:
        from diffdistill.models.families.vp import consistency_scheduler

        scheduler = consistency_scheduler(self.teacher, self.grid, self.boundary.scale)
        export_student(self.teacher, copy.deepcopy(unwrap(self.networks["student"]).inner), scheduler, folder)
        if self.half:
            halve(folder)
