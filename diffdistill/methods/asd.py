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

from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition
from diffdistill.distill import WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up

from .base import Loss, OptimizerSettings, Phase, check_eta, check_guidance
from .judge import Judge
from .one_step import OneStep
from .settings import ExportSettings, JudgedTimes, TeacherSettings
from .student import OneStepStudent


class ASD(OneStep):
    """Distil a teacher into one step with the teacher alone; the defaults are the paper's.

    Args:
        teacher: the model that is distilled.
        prompts: a file of prompts.
        eta: largest shift of the later time, as a share of t - t_min; the paper finds .1 best, of 0 to .2.
        weight: weight on the residual, a name in `distill.WEIGHTS`.
        guidance_scale: of the teacher at t; at t + dt it has none.
        times: times at which samples are judged.
        optimizer: of the student.
        noise_ratio: sigma/alpha of the time at which the student is given noise; null for the last time.
        export: how the product is stored.
    """

    judge: Judge

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        eta: float = 0.1,
        weight: str = "sigma2",
        guidance_scale: float = 7.5,
        times: JudgedTimes = JudgedTimes(0.5, 0.981, 0.02, 0.5),
        optimizer: OptimizerSettings = OptimizerSettings(1e-6),
        noise_ratio: float | None = None,
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(WEIGHTS, weight, "weight")
        check_eta(eta=eta)
        self.eta, self.weight = eta, weight
        texts, loaded = read_prompts(prompts), teacher.load()
        judge = Judge(loaded, times, guidance_scale)
        super().__init__(loaded, texts, OneStepStudent(loaded, noise_ratio), optimizer, export, judge)

    def phases(self, step: int) -> list[Phase]:
        return self.judge.phases(step, self.student.train_sample, self.networks, self.loss)

    def loss(self, x0: Tensor, cond: Condition, random: SampleRandom) -> Loss:
        """The loss on samples of the student."""
        return self.judge.loss(x0, cond, random, residual="asd", weight=self.weight, eta=self.eta)
