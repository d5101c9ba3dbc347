"""ASD: asynchronous score distillation into one step, without a fake score (ScaleDreamer, arXiv 2407.02040).

    z --student at T*--> x0 --noise--> x_t    --teacher, guided------> eps_T \\
                          |                                                   > weight * (eps_T - eps_later)
                          +-same noise-> x_t+dt --teacher, conditional-> eps_later /

Notable:
- the teacher's prediction at a slightly later time replaces a fake score, because a teacher denoises better at higher
  noise. So only the student is trained, and memory holds two UNets;
- dt ~ U[0, eta (t - t_min)), with the t_min at that point of the run; at eta = 0 the loss is that of CSD times s - 1;
- both ends of the range of times come down over the run, as in the paper. The paper is about text-to-3D; here the same
  loss trains a one-step image student. It seeks modes; see docs/methods/asd.md.
"""

from __future__ import annotations

from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition
from diffdistill.distill import WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up

from .base import Loss, OptimizerSettings, Phase, check_eta, check_guidance, open_teacher
from .judge import Judge
from .one_step import OneStep
from .settings import ExportSettings, HealthSettings, JudgedTimes, TeacherSettings
from .student import OneStepStudent


class ASD(OneStep):
    """Distil a teacher into one step with the teacher alone; the defaults are the paper's.

    Args:
        teacher: the model that is distilled.
        prompts: a file of prompts.
        eta: largest shift of the later time, as a fraction of t - t_min; the paper finds .1 best among 0 to .2.
        weight: weight on the residual, a name in `distill.WEIGHTS`.
        guidance_scale: guidance of the teacher at t; at t + dt it has none.
        times: times at which samples are judged.
        optimizer: the student's optimiser.
        noise_ratio: sigma/alpha at the time at which the student gets noise; null for the last time.
        health: numbers of the student against the teacher's, at each validation.
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
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(WEIGHTS, weight, "weight")
        check_eta(eta=eta)
        self.eta, self.weight = eta, weight
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        judge = Judge(loaded, times, guidance_scale)
        student = OneStepStudent(loaded, noise_ratio)
        super().__init__(loaded, texts, student, optimizer, export, judge, health=health)

    def phases(self, step: int) -> list[Phase]:
        return self.judge.phases(step, self.student.train_sample, self.networks, self.loss)

    def loss(self, x0: Tensor, cond: Condition, random: SampleRandom) -> Loss:
        """The loss on samples of the student."""
        return self.judge.loss(x0, cond, random, residual="asd", weight=self.weight, eta=self.eta)
