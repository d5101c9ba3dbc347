"""Progressive distillation: the student halves its predecessor's DDIM steps, again and again (arXiv 2202.00512).

    z --student, DDIM, no graph--> x_t --student---------------------------------------> x0
                                    |                                                     | weighted squared error
                                    +--predecessor, two DDIM steps of half the length--> x-tilde

Notable:
- stages follow the progress of the run. When one ends the student's weights become the predecessor's; the first
  predecessor is the teacher, guided at one scale, which the student so takes in (arXiv 2210.03142, its scale fixed);
- prompts are all the data: x_t lies on the student's own path from noise, which is where it is going to be used;
- two UNets are all the weights there are: the teacher's is the predecessor, and nothing asks for it later;
- which stage it is stands in the checkpoint beside the predecessor's weights: progress alone does not say whether
  they have been taken over yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition, ddim
from diffdistill.distill import SampleRandom
from diffdistill.distill.progressive import (
    PROGRESSIVE_WEIGHTS,
    ddim_path,
    halving_grid,
    halvings,
    progressive_loss,
    stage_at,
    two_step_target,
)
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.models.families.unet import UNetBackbone

from .base import Batch, Loss, Phase, check_guidance, check_shares, unwrap
from .one_step import OneStep


class Predecessor(UNetBackbone):
    """The network of the stage before and the stage's number: parameters, so that checkpoints hold both."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet.requires_grad_(True))
        self.stage = nn.Parameter(torch.zeros(()))


class Progressive(OneStep):
    """Distil a Stable-Diffusion-class teacher's DDIM sampler into half its steps, and that into half, and so on.

    Args:
        teacher: pipeline folder or hub id.
        prompts: text file, one prompt a line.
        teacher_steps: DDIM steps of the teacher that the first stage halves.
        final_steps: steps of the last student; teacher_steps is 2, 4, 8, ... times as many.
        shares: how long the stages are, relative to each other; null for all as long.
        guidance_scale: the teacher's; later predecessors have it in them.
        weight: on the squared error of x0: truncated_snr (max(SNR, 1)), snr_plus_one (the error of v) or x0.
        student_learning_rate: AdamW's at the start of each stage.
        stage_lr_final: share of it that a stage ends at, linearly; 1 leaves it to `training`.
        betas: AdamW's.
        adam_eps: AdamW's eps, which counts beside the gradient's size; see docs/methods/README.md.
        noise_ratio: sigma/alpha of the time at which noise is fed; null for the last time.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
    """

    def __init__(
        self,
        teacher: str,
        prompts: str,
        teacher_steps: int = 64,
        final_steps: int = 1,
        shares: tuple[float, ...] | None = None,
        guidance_scale: float = 7.5,
        weight: str = "truncated_snr",
        student_learning_rate: float = 1e-4,
        stage_lr_final: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        noise_ratio: float | None = None,
        attention: str = "auto",
        half_export: bool = False,
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
            raise UserError(f"shares are {list(self.shares)}; {len(self.steps)} stages need as many numbers above 0")
        self.weight, self.guidance_scale, self.stage_lr_final = weight, guidance_scale, stage_lr_final
        super().__init__(
            teacher,
            prompts,
            student_learning_rate=student_learning_rate,
            betas=betas,
            adam_eps=adam_eps,
            noise_ratio=noise_ratio,
            t_min=0.0,  # no times are judged
            t_max=1.0,
            attention=attention,
            half_export=half_export,
        )
        # a stock DDIM sampler takes all its steps equally long: they are ours where final_steps divides T* + 1
        self.t_star = (self.t_star + 1) // final_steps * final_steps - 1
        try:
            self.times = halving_grid(self.t_star, teacher_steps)
        except ValueError as error:
            raise UserError(f"teacher_steps: {error}") from error
        self.at_first = self.optimizers["student"]
        self.networks["predecessor"] = Predecessor(self.teacher.backbone.inner)

    # ---- stages -----------------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        """The stage whose predecessor is in `networks`; stage k teaches a student of steps[k]."""
        return int(unwrap(self.networks["predecessor"]).stage)

    def begin_step(self, step: int) -> None:
        stage, place = stage_at(self.progress, self.shares)
        if stage > self.stage:
            self._take_over(stage)
        if stage < self.stage:  # continued with a longer time limit: what is learnt stays
            place = 0.0
        factor = max(1 - (1 - self.stage_lr_final) * place, 1e-9)  # a rate is above 0
        self.optimizers["student"] = replace(self.at_first, learning_rate=self.at_first.learning_rate * factor)

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._loss)]

    @torch.no_grad()
    def _take_over(self, stage: int) -> None:
        """The student becomes the predecessor."""
        predecessor, student = (unwrap(self.networks[name]) for name in ("predecessor", "student"))
        predecessor.inner.load_state_dict(student.inner.state_dict())
        predecessor.stage.fill_(stage)

    def _grid(self, steps: int) -> list[int]:
        """Times of a sampler of so many steps, and -1."""
        return self.times[:: (len(self.times) - 1) // steps]

    # ---- the loss ---------------------------------------------------------------------------------------------

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        student, cond, stage = self.networks["student"], batch["cond"], self.stage
        steps = self.steps[stage]
        z = random.normal("z", self.teacher.latent_shape)
        place = random.integers("step", steps)
        x_t = ddim_path(self._denoiser(unwrap(student)), z, self._grid(steps), cond, place)
        fine = torch.tensor(self._grid(2 * steps), device=z.device)
        t, middle, end = (fine[2 * place + k] for k in (0, 1, 2))
        predecessor = self._denoiser(unwrap(self.networks["predecessor"]))
        scale = self.guidance_scale if stage == 0 else 1.0
        target = two_step_target(predecessor, x_t, t, middle, end, cond, self.null, scale)
        loss = progressive_loss(self._denoiser(student), x_t, t, target, cond, self.weight)
        return loss, {"steps": torch.tensor(float(steps), device=z.device)}

    # ---- product ----------------------------------------------------------------------------------------------

    def _draw(self, network: Any, random: SampleRandom, cond: Condition) -> Tensor:
        """x0 in the steps of the present stage."""
        denoiser = self._denoiser(network)
        z = random.normal("preview", self.teacher.latent_shape)
        return ddim(lambda x, t: denoiser(x, t, cond), z, self.schedule, self._grid(self.steps[self.stage])[:-1])
