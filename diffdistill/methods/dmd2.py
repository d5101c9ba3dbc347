"""DMD2: distribution matching into one or a few steps (arXiv 2405.14867), and Diff-Instruct as a setting of it.

    z --student, k steps at the most--> x0 --noise--> x_t --teacher, guided--> x0_T \\
                                         |                                          > weight * (x0_F - x0_T)
                                         |            x_t --fake score-----> x0_F  /
                                         +--> the fake score learns to denoise x0, n times for each such update

Notable:
- the gradient is that of VSD, in x0 space and normalised. The fake score is a full copy and unguided;
- the fake score has `fake.updates` updates for each update of the student. All but the first use fresh samples;
- for each sample, a student of several steps is trained at one step, drawn at random, on inputs from its own earlier
  steps (`distill.backward_simulation`). The scores judge the samples of all steps as one distribution;
- with `adversary.data.source` an adversarial term is added (`methods/adversary.py`). Without it the data are prompts
  alone;
- Diff-Instruct (arXiv 2305.18455) has weight x0, which is sigma^2 on the difference of scores where alpha = 1, an
  unguided teacher, and one update of the fake score.
"""

from __future__ import annotations

from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition
from diffdistill.distill import WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError

from .base import Loss, OptimizerSettings, Phase, check_guidance, open_teacher
from .judge import Judge
from .one_step import OneStep, adversary_of, pairs_of
from .settings import (
    AdversarySettings,
    ExportSettings,
    FakeScore,
    HealthSettings,
    JudgedTimes,
    PairSettings,
    TeacherSettings,
)
from .student import FewStepStudent, OneStepStudent


class DMD2(OneStep):
    """Distil a teacher into one or a few steps by distribution matching; the defaults are the paper's.

    Args:
        teacher: the model that is distilled.
        prompts: a file of prompts.
        steps: number of the student's steps: 1, 2, 4, ... Their times are spaced evenly from the first time, at which
            the student gets noise, downwards.
        weight: weight on the residual, a name in `distill.WEIGHTS`; dmd is the paper's.
        guidance_scale: the teacher's guidance; 1.75 for Stable Diffusion 1.5, 8 for SDXL. The fake score has none.
        fake: the fake score. It has 5 updates for one of the student, and 10 for Stable Diffusion 1.5. In Python,
            change the default as in `dataclasses.replace(DMD2.FAKE, updates=10)`, because a new `FakeScore` has other
            defaults.
        times: times at which the student's samples are judged.
        optimizer: the student's optimiser.
        noise_ratio: sigma/alpha at the time at which the student gets noise; null for the last time.
        adversary: the adversarial term; its weight is 1e-3 for Stable Diffusion 1.5.
        pairs: pairs of the teacher, for `adversary.of_teacher`.
        start: folder of an exported student of the same teacher, from which the student starts; null for the teacher's
            weights.
        health: numbers of the student against the teacher's, at each validation.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or the files do not fit each other.
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
        pairs: PairSettings = PairSettings(),
        start: str | None = None,
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        look_up(WEIGHTS, weight, "weight")
        if steps < 1:
            raise UserError(f"steps is {steps}; a student takes at least 1")
        self.weight = weight
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        made = pairs_of(pairs, loaded, texts, adversary.of_teacher)
        judge = Judge(loaded, times, guidance_scale, fake, adversary_of(adversary, loaded, texts, made))
        one = steps == 1
        student = OneStepStudent(loaded, noise_ratio) if one else FewStepStudent(loaded, noise_ratio, steps)
        super().__init__(loaded, texts, student, optimizer, export, judge, made, start, health)

    def phases(self, step: int) -> list[Phase]:
        return self.judge.phases(step, self.student.train_sample, self.networks, self.loss)

    def loss(self, x0: Tensor, cond: Condition, random: SampleRandom) -> Loss:
        """The loss on samples of the student."""
        return self.judge.loss(x0, cond, random, residual="vsd", weight=self.weight)
