"""ASD: asynchronous score distillation into one step, without a fake score (ScaleDreamer, arXiv 2407.02040).

    z --student at T*--> x0 --noise--> x_t    --teacher, guided------> eps_T \\
                          |                                                   > weight * (eps_T - eps_later)
                          +-same noise-> x_t+dt --teacher, conditional-> eps_later /

Notable:
- a teacher denoises better what is noised more, so its own prediction a little later stands in for a fake score:
  nothing is trained but the student, and two UNets are all the weights there are;
- dt ~ U[0, eta (t - t_min)), with the t_min of that point of the run; at eta = 0 it is CSD times s - 1;
- both ends of the times judged come down over the run, as in the paper. Its subject is text-to-3D; here the same loss
  trains a one-step image student. It seeks modes: see docs.
"""

from __future__ import annotations

from typing import Any

from diffdistill.distill import WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up

from .base import Batch, Loss, Phase, check_guidance
from .one_step import OneStep, check_eta


class ASD(OneStep):
    """Distil a Stable-Diffusion-class teacher into one step with the teacher alone; the defaults are the paper's.

    Args:
        teacher: pipeline folder or hub id.
        prompts: text file, one prompt a line.
        eta: largest shift of the later time, relative to t - t_min; the paper finds .1 best, of 0 to .2.
        weight: weight on the residual, a name in `distill.WEIGHTS`.
        guidance_scale: of the teacher at t; at t + dt it has none.
        student_learning_rate: AdamW's, constant unless `training` says otherwise.
        betas: AdamW's.
        adam_eps: AdamW's eps, which counts beside the gradient's size; see docs/methods/README.md.
        t_min: lower end of the times judged at the start, as a fraction.
        t_min_final: where it arrives at the end of training, linearly; null for where it started.
        t_max: upper end at the start, not included.
        t_max_final: where that arrives; null for where it started.
        noise_ratio: sigma/alpha of the time at which the student is fed; null for the last time.
        attention: auto, sdpa, math or xformers.
        half_export: store the exported UNet's and VAE's weights as float16.
    """

    def __init__(
        self,
        teacher: str,
        prompts: str,
        eta: float = 0.1,
        weight: str = "sigma2",
        guidance_scale: float = 7.5,
        student_learning_rate: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        t_min: float = 0.5,
        t_min_final: float | None = 0.02,
        t_max: float = 0.981,
        t_max_final: float | None = 0.5,
        noise_ratio: float | None = None,
        attention: str = "auto",
        half_export: bool = False,
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(WEIGHTS, weight, "weight")
        check_eta(eta=eta)
        self.eta, self.weight, self.guidance_scale = eta, weight, guidance_scale
        super().__init__(
            teacher,
            prompts,
            student_learning_rate=student_learning_rate,
            betas=betas,
            adam_eps=adam_eps,
            noise_ratio=noise_ratio,
            t_min=t_min,
            t_max=t_max,
            t_min_final=t_min_final,
            t_max_final=t_max_final,
            attention=attention,
            half_export=half_export,
        )

    def phases(self, step: int) -> list[Phase]:
        return [Phase("student", "student", self._student_loss)]

    def _student_loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        cond = batch["cond"]
        x0 = self._sample(self.networks["student"], random, cond)
        return self._distil("asd", self.weight, x0, cond, random, self.guidance_scale, eta=self.eta)
