"""DMD2: distribution matching into one or a few steps (arXiv 2405.14867), and Diff-Instruct as a setting of it.

    z --student, k steps at the most--> x0 --noise--> x_t --teacher, guided--> x0_T \\
                                         |                                          > weight * (x0_F - x0_T)
                                         |            x_t --fake score-----> x0_F  /
                                         +--> the fake score learns to denoise x0, n times for each such update

Notable:
- the gradient is VSD's, in x0 space and normalised; the fake score is a full copy and unguided;
- two time scales: `fake.updates` of the fake score for one of the student, each on fresh samples but the first;
- a student of several steps is trained at one of them a sample, drawn at random, on inputs that its own earlier steps
  made (`distill.backward_simulation`); the scores judge the samples of all its steps as one distribution;
- with `adversary.data.source` an adversarial term is added (`methods/adversary.py`); without, prompts are all the data;
- Diff-Instruct (arXiv 2305.18455): weight x0, which is sigma^2 on the difference of scores where alpha = 1, an unguided
  teacher, one update each.
"""

from __future__ import annotations

from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition
from diffdistill.distill import WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError

from .base import Loss, OptimizerSettings, Phase, check_guidance
from .judge import Judge
from .one_step import OneStep, adversary_of
from .settings import AdversarySettings, ExportSettings, FakeScore, JudgedTimes, TeacherSettings
from .student import FewStepStudent, OneStepStudent


class DMD2(OneStep):
    """Distil a teacher into one or a few steps by distribution matching; the defaults are the paper's.

    Args:
        teacher: the model that is distilled.
        prompts: a file of prompts.
        steps: of the student: 1, 2, 4, ...; their times are spread evenly, downwards from the first one, where noise
            is given.
        weight: weight on the residual, a name in `distill.WEIGHTS`; dmd is the paper's.
        guidance_scale: the teacher's guidance; 1.75 for Stable Diffusion 1.5, 8 for SDXL. The fake score has none.
        fake: the fake score; 5 updates for one of the student, and 10 for Stable Diffusion 1.5. In Python, change the
            default as in `dataclasses.replace(DMD2.FAKE, updates=10)`: a new `FakeScore` has other defaults.
        times: times at which the student's samples are judged.
        optimizer: of the student.
        noise_ratio: sigma/alpha of the time at which noise is given; null for the last time.
        adversary: the adversarial term; its weight is 1e-3 for Stable Diffusion 1.5.
        export: how the product is stored.
    """

    FAKE = FakeScore(optimizer=OptimizerSettings(1e-5), updates=5, weight="eps", guidance_scale=1.0)
    judge: Judge

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        steps: int = 1,
        weight: str = "dmd",
        guidance_scale: float = 1.75,
        fake: FakeScore = FAKE,
        times: JudgedTimes = JudgedTimes(),
        optimizer: OptimizerSettings = OptimizerSettings(1e-5),
        noise_ratio: float | None = None,
        adversary: AdversarySettings = AdversarySettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(WEIGHTS, weight, "weight")
        if steps < 1:
            raise UserError(f"steps is {steps}; a student takes at least 1")
        self.weight = weight
        texts, loaded = read_prompts(prompts), teacher.load()
        judge = Judge(loaded, times, guidance_scale, fake, adversary_of(adversary, loaded, texts))
        one = steps == 1
        student = OneStepStudent(loaded, noise_ratio) if one else FewStepStudent(loaded, noise_ratio, steps)
        super().__init__(loaded, texts, student, optimizer, export, judge)

    def phases(self, step: int) -> list[Phase]:
        return self.judge.phases(step, self.student.train_sample, self.networks, self.loss)

    def loss(self, x0: Tensor, cond: Condition, random: SampleRandom) -> Loss:
        """The loss on samples of the student."""
        return self.judge.loss(x0, cond, random, residual="vsd", weight=self.weight)
