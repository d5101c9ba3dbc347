"""Progressive distillation: in each stage the student halves the DDIM steps of its predecessor (arXiv 2202.00512).

    z --student, DDIM, no graph--> x_t --student---------------------------------------> x0
                                    |                                                     | weighted squared error
                                    +--predecessor, two DDIM steps of half the length--> x-tilde

Notable:
- stages follow the progress of the run. At the end of a stage the student becomes the predecessor. The first
  predecessor is the teacher, guided at one scale, so the student learns the guidance (arXiv 2210.03142, with a fixed
  scale);
- the data are prompts alone. x_t is on the student's own path from noise, where it will be used;
- memory holds two UNets, because the teacher's UNet is the first predecessor and is not needed later;
- a checkpoint holds the number of the stage beside the predecessor's weights, because the progress of the run does not
  say whether the predecessor has been replaced yet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition, ddim
from diffdistill.distill import (
    PROGRESSIVE_WEIGHTS,
    SampleRandom,
    ddim_path,
    halving_grid,
    halvings,
    progressive_loss,
    stage_at,
    two_step_target,
)
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.teacher import Teacher

from .base import Batch, Loss, OptimizerSettings, Phase, Validation, check_guidance, check_shares, open_teacher, unwrap
from .one_step import OneStep
from .settings import ExportSettings, HealthSettings, TeacherSettings
from .student import first_time, require_variance_preserving


class Predecessor(nn.Module):
    """The network of the previous stage and the number of the stage, both as parameters, so that checkpoints hold them.

    Args:
        backbone: the teacher's network, which is the predecessor in the first stage.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(True)
        self.stage = nn.Parameter(torch.zeros(()))

    @property
    def inner(self) -> Any:
        """The diffusers network."""
        return self.backbone.inner

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """Predict as the backbone does."""
        value: Tensor = self.backbone(x_t, time, cond)
        return value


class HalvingStudent:
    """A student that samples by DDIM in the steps of the present stage.

    Args:
        teacher: the teacher, for its schedule and latent shape.
        time: T*, the time at which the student gets noise.
        times: the times of the teacher's sampler, from T* down, and -1.
        steps: returns the number of steps of the present stage.
    """

    def __init__(self, teacher: Teacher, time: Tensor, times: list[int], steps: Callable[[], int]) -> None:
        self.teacher, self.time, self.times, self.steps = teacher, time, times, steps

    def grid(self, steps: int) -> list[int]:
        """The times of a sampler of so many steps, and -1."""
        return self.times[:: (len(self.times) - 1) // steps]

    def train_sample(self, network: Any, random: SampleRandom, cond: Condition, draw: str = "") -> Tensor:
        """x0 in all steps of the stage; another `draw` starts from another noise."""
        return self._x0(network, random.normal(f"z{draw}", self.teacher.latent_shape), cond)

    def sample(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 in all steps of the stage, from the noise of previews."""
        return self._x0(network, random.normal("preview", self.teacher.latent_shape), cond)

    def _x0(self, network: Any, z: Tensor, cond: Condition) -> Tensor:
        denoiser = self.teacher.denoiser(network)
        return ddim(lambda x, t: denoiser(x, t, cond), z, self.teacher.schedule, self.grid(self.steps())[:-1])

    def exported(self, network: Any) -> Any:
        """The diffusers network that is exported, a copy."""
        return copy.deepcopy(unwrap(network).inner)

    def scheduler(self) -> Any:
        """A stock DDIM scheduler that starts at T*."""
        return self.teacher.family.one_step_scheduler(self.teacher, self.time.item())


class Progressive(OneStep):
    """Distil a teacher's DDIM sampler into half its steps, then that into half of these, and so on.

    Args:
        teacher: the model that is distilled, of a variance-preserving schedule.
        prompts: a file of prompts.
        teacher_steps: number of DDIM steps of the teacher, which the first stage halves.
        final_steps: number of steps of the last student; teacher_steps must be 2, 4, 8, ... times as many.
        shares: lengths of the stages, relative to each other; null for stages of equal length.
        guidance_scale: guidance of the teacher; later predecessors have learnt it.
        weight: weight on the squared error of x0: truncated_snr (max(SNR, 1)), snr_plus_one (the error of v) or x0.
        optimizer: the student's optimiser at the start of each stage.
        stage_lr_final: fraction of the learning rate at the end of a stage; it falls linearly. 1 keeps it constant, so
            that only `training` changes it.
        noise_ratio: sigma/alpha at the time at which the student gets noise; null for the last time.
        health: numbers of the student against the teacher's, at each validation.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or the teacher has another kind of schedule.
    """

    student: HalvingStudent

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        teacher_steps: int = 64,
        final_steps: int = 1,
        shares: tuple[float, ...] | None = None,
        guidance_scale: float = 7.5,
        weight: str = "truncated_snr",
        optimizer: OptimizerSettings = OptimizerSettings(1e-4),
        stage_lr_final: float = 0.0,
        noise_ratio: float | None = None,
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(PROGRESSIVE_WEIGHTS, weight, "weight")
        check_shares(stage_lr_final=stage_lr_final)
        try:
            self.steps = halvings(teacher_steps, final_steps)
        except ValueError as error:
            raise UserError(f"teacher_steps {teacher_steps}, final_steps {final_steps}: {error}") from error
        self.shares: Sequence[float] = [1.0] * len(self.steps) if shares is None else shares
        if len(self.shares) != len(self.steps) or not all(share > 0 for share in self.shares):
            raise UserError(f"shares are {list(self.shares)}; they must be {len(self.steps)} numbers above 0")
        self.weight, self.guidance_scale, self.stage_lr_final = weight, guidance_scale, stage_lr_final
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        require_variance_preserving(loaded, "Progressive")
        # a stock DDIM sampler has steps of equal length, which are those of the student if final_steps divides T* + 1
        time = (first_time(loaded, noise_ratio) + 1) // final_steps * final_steps - 1
        try:
            times = halving_grid(int(time), teacher_steps)
        except ValueError as error:
            raise UserError(f"teacher_steps: {error}") from error
        student = HalvingStudent(loaded, time, times, lambda: self.steps[self.stage])
        super().__init__(loaded, texts, student, optimizer, export, health=health)
        self.frozen = {}  # the teacher's network is the first predecessor
        self.at_first = optimizer
        self.networks["predecessor"] = Predecessor(loaded.backbone.float())

    # ---- stages -----------------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        """The stage whose predecessor is in `networks`; in stage k the student has steps[k] steps."""
        return int(unwrap(self.networks["predecessor"]).stage)

    def begin_step(self, step: int) -> None:
        stage, place = stage_at(self.progress, self.shares)
        if stage > self.stage:
            self._take_over(stage)
        if stage < self.stage:  # after a continuation with a longer time limit; the stage is not undone
            place = 0.0
        factor = max(1 - (1 - self.stage_lr_final) * place, 1e-9)  # a learning rate must be above 0
        self.optimizers["student"] = replace(self.at_first, learning_rate=self.at_first.learning_rate * factor)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._loss)]

    @torch.no_grad()
    def _take_over(self, stage: int) -> None:
        """Copy the student's weights to the predecessor."""
        predecessor, student = (unwrap(self.networks[name]) for name in ("predecessor", "student"))
        predecessor.inner.load_state_dict(student.inner.state_dict())
        predecessor.stage.fill_(stage)

    def validate(self) -> Validation:
        """As for every one-step method; only the student of the last stage, which is exported, has a score."""
        found = super().validate()
        return found if self.stage == len(self.steps) - 1 else replace(found, score=None)

    # ---- the loss ---------------------------------------------------------------------------------------------

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        student, cond, stage = self.networks["student"], batch["cond"], self.stage
        steps = self.steps[stage]
        z = random.normal("z", self.teacher.latent_shape)
        place = random.integers("step", steps)
        x_t = ddim_path(self.teacher.denoiser(unwrap(student)), z, self.student.grid(steps), cond, place)
        fine = torch.tensor(self.student.grid(2 * steps), device=z.device)
        t, middle, end = (fine[2 * place + k] for k in (0, 1, 2))
        predecessor = self.teacher.denoiser(unwrap(self.networks["predecessor"]))
        scale = self.guidance_scale if stage == 0 else 1.0
        target = two_step_target(predecessor, x_t, t, middle, end, cond, self.null, scale)
        loss = progressive_loss(self.teacher.denoiser(student), x_t, t, target, cond, self.weight)
        return loss, {"steps": torch.tensor(float(steps), device=z.device)}
