"""SwiftBrush: variational score distillation into a one-step generator, from prompts alone (arXiv 2312.05239).

    z --student at T*--> x0 --noise--> x_t --teacher, guided--> eps_T \\
                          |                                            > weight * (eps_T - eps_F) = gradient on x0
                          |             x_t --fake score-------> eps_F /
                          +--> the fake score learns to denoise x0 (after the student's update, with the same x0)

Notable:
- a guidance scale of 1 is unguided. The released code guides teacher and fake score with one scale
  (`fake.guidance_scale` null). With 1 the fake score is unguided, as in DMD;
- the fake score is a full copy of the teacher, or LoRA adapters on the teacher itself;
- `residual` names a row of the score-distillation family that needs no other networks: vsd, sds, sjc, csd, asd, sdi;
- with `adversary.data.source` an adversarial term is added, as in DMD2 (`methods/adversary.py`). It is off by default.
"""

from __future__ import annotations

from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition
from diffdistill.distill import RESIDUALS, WEIGHTS, SampleRandom
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError

from .base import Loss, OptimizerSettings, Phase, check_eta, check_guidance, open_teacher
from .judge import Judge
from .one_step import OneStep, adversary_of, pairs_of
from .regression import Regression
from .settings import (
    AdversarySettings,
    ExportSettings,
    FakeScore,
    HealthSettings,
    JudgedTimes,
    PairSettings,
    RegressionSettings,
    TeacherSettings,
)
from .student import OneStepStudent

AT_HAND = {"cond", "null", "guided", "fake", "later"}  # the inputs that this method can give a residual


class SwiftBrush(OneStep):
    """Distil a teacher into one step by variational score distillation; the defaults are the paper's.

    Args:
        teacher: the model that is distilled.
        prompts: a file of prompts.
        residual: a row of the score-distillation family: vsd, sds, sjc, csd, asd or sdi.
        weight: weight on the residual, a name in `distill.WEIGHTS`: sigma2 (the paper), dmd, prd, x0, uniform,
            alpha_sigma, alpha_sigma2.
        guidance_scale: the teacher's guidance.
        eta: largest shift of ASD's later time, as a fraction of t - t_min; used by the residual asd alone.
        fake: the fake score; used by the residual vsd alone. In Python, change the default as in
            `dataclasses.replace(SwiftBrush.FAKE, network="full")`, because a new `FakeScore` has other defaults.
        times: times at which the student's samples are judged.
        optimizer: the student's optimiser.
        noise_ratio: sigma/alpha at the time at which the student gets noise; null for the last time.
        adversary: the adversarial term.
        pairs: pairs of the teacher, for `regression` and for `adversary.of_teacher`.
        regression: regression on these pairs, alone at first or beside score distillation.
        start: folder of an exported one-step student of the same teacher, from which the student starts; null for the
            teacher's weights.
        health: numbers of the student against the teacher's, at each validation.
        export: how the product is stored.

    Raises:
        UserError: a setting is out of its range, or the residual needs something that this method has not.
    """

    FAKE = FakeScore("lora", OptimizerSettings(1e-3), drop_text=0.1)
    judge: Judge

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        residual: str = "vsd",
        weight: str = "sigma2",
        guidance_scale: float = 4.5,
        eta: float = 0.1,
        fake: FakeScore = FAKE,
        times: JudgedTimes = JudgedTimes(),
        optimizer: OptimizerSettings = OptimizerSettings(1e-6),
        noise_ratio: float | None = None,
        adversary: AdversarySettings = AdversarySettings(),
        pairs: PairSettings = PairSettings(),
        regression: RegressionSettings = RegressionSettings(),
        start: str | None = None,
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        row = look_up(RESIDUALS, residual, "residual")
        look_up(WEIGHTS, weight, "weight")
        check_eta(eta=eta)
        if not row.needs <= AT_HAND:
            raise UserError(f"residual {residual}: SwiftBrush has no {', '.join(sorted(row.needs - AT_HAND))}")
        needs_fake = "fake" in row.needs
        if adversary.used and not needs_fake:
            raise UserError(
                f"adversary: the discriminator needs the features of a fake score, and {residual} has none; "
                "set residual to vsd"
            )
        self.residual, self.weight, self.eta = residual, weight, eta
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        made = pairs_of(pairs, loaded, texts, regression.used or adversary.of_teacher)
        real = adversary_of(adversary, loaded, texts, made)
        judge = Judge(loaded, times, guidance_scale, fake if needs_fake else None, real)
        student = OneStepStudent(loaded, noise_ratio)
        self.regression: Regression | None = None
        if regression.used:
            if made is None:
                raise UserError("regression needs pairs of the teacher; set pairs.count, for example to 10000")
            self.regression = Regression(regression, made, student)
        super().__init__(loaded, texts, student, optimizer, export, judge, made, start, health)
        self.steps_before += regression.alone

    def enable_gradient_checkpointing(self) -> None:
        if self.judge.shared and self.regression is not None and self.regression.features is not None:
            raise UserError(
                "training.gradient_checkpointing: regression.features reads the teacher with its adapters off, which "
                "cannot be computed again; set fake.network to full, or this to false"
            )
        super().enable_gradient_checkpointing()

    def phases(self, step: int) -> list[Phase]:
        if self.regression is None:
            return self._judged(step)
        return self.regression.phases(step, self.networks, self._judged)

    def _judged(self, step: int) -> list[Phase]:
        return self.judge.phases(step, self.student.train_sample, self.networks, self.loss)

    def loss(self, x0: Tensor, cond: Condition, random: SampleRandom) -> Loss:
        """The loss on samples of the student."""
        return self.judge.loss(x0, cond, random, residual=self.residual, weight=self.weight, eta=self.eta)
