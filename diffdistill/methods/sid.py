"""SiD: score identity distillation into one step (arXiv 2404.04057), with the guidance of SiD-LSG (arXiv 2406.01561).

    z --student at T*--> x0 --noise--> x_t --teacher, guided---> f_T \\
                          |             |                              > (1-a) |f_T - f_F|^2 + <f_T - f_F, f_F - x0>
                          |             +-----fake score, guided-> f_F /          differentiated through both scores
                          +--> the fake score learns to denoise x0, with its guided prediction

Notable:
- the gradient at x0 goes through teacher and fake score, but not to their weights. So a step takes the backward passes
  of both, and the memory for them;
- one guidance scale is used in three places, as in SiD-LSG: for the fake score's prediction that learns to denoise
  (kappa_1), and for teacher and fake score when they judge (kappa_2 = kappa_3, kappa_4). A scale of 1 is plain SiD;
- the loss oscillates about zero and does not show progress; `gap_rms` in the log falls;
- with `adversary.data.source` an adversarial term is added, as in SiDA (arXiv 2410.14919), whose term differs; see
  docs/methods/sid.md.
"""

from __future__ import annotations

from torch import Tensor

from diffdistill.data.prompts import read_prompts
from diffdistill.diffusion import Condition
from diffdistill.distill import SampleRandom, on_the_sample, score_identity_loss
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
from .student import OneStepStudent

_ADAM = OptimizerSettings(1e-6, (0.0, 0.999))


class SiD(OneStep):
    """Distil a teacher into one step by score identity; the defaults are those of SiD-LSG.

    Args:
        teacher: the model that is distilled.
        prompts: a file of prompts.
        alpha: the paper's alpha; 1 with text, 1.2 on CIFAR-10.
        guidance_scale: guidance of the teacher when it judges.
        fake: the fake score. By default it judges and is trained with the teacher's guidance scale, and is trained at
            the times at which samples are judged. Its samples without a prompt are made from the empty prompt, as in
            the released code. In Python, change the default as in `dataclasses.replace(SiD.FAKE, updates=2)`, because a
            new `FakeScore` has other defaults.
        times: times at which samples are judged.
        optimizer: the student's optimiser.
        noise_ratio: sigma/alpha at the time at which the student gets noise; null for the last time.
        adversary: the adversarial term.
        pairs: pairs of the teacher, for `adversary.of_teacher`.
        start: folder of an exported student of the same teacher, from which the student starts; null for the teacher's
            weights.
        health: numbers of the student against the teacher's, at each validation.
        export: how the product is stored.
    """

    FAKE = FakeScore(
        optimizer=_ADAM,
        weight="eps",
        drop_text=None,
        sample_dropped=True,
        train_guidance_scale=None,
        train_times="judged",
    )
    judge: Judge

    def __init__(
        self,
        teacher: TeacherSettings,
        prompts: str,
        alpha: float = 1.0,
        guidance_scale: float = 2.0,
        fake: FakeScore = FAKE,
        times: JudgedTimes = JudgedTimes(t_max=0.98),
        optimizer: OptimizerSettings = _ADAM,
        noise_ratio: float | None = 2.5,
        adversary: AdversarySettings = AdversarySettings(),
        pairs: PairSettings = PairSettings(),
        start: str | None = None,
        health: HealthSettings = HealthSettings(),
        export: ExportSettings = ExportSettings(),
    ) -> None:
        check_guidance(guidance_scale=guidance_scale)
        if getattr(teacher, "dtype", None) == "float16":  # a teacher without settings is refused below
            raise UserError("teacher.dtype is float16; SiD's gradient goes through the teacher, so set it to bfloat16")
        self.alpha = alpha
        texts, loaded = read_prompts(prompts), open_teacher(teacher)
        if adversary.divergence != "reverse_kl":
            raise UserError(
                f"adversary.divergence is {adversary.divergence}; SiD minimises a Fisher divergence, so leave it at "
                "reverse_kl"
            )
        made = pairs_of(pairs, loaded, texts, adversary.of_teacher)
        judge = Judge(loaded, times, guidance_scale, fake, adversary_of(adversary, loaded, texts, made))
        self.fake_guidance_scale = fake.judging_scale(guidance_scale)
        student = OneStepStudent(loaded, noise_ratio)
        super().__init__(loaded, texts, student, optimizer, export, judge, made, start, health)

    def enable_gradient_checkpointing(self) -> None:
        if self.judge.shared:
            raise UserError(
                "training.gradient_checkpointing: SiD's gradient goes through the teacher with its adapters off, which "
                "cannot be computed again; set fake.network to full, or this to false"
            )
        super().enable_gradient_checkpointing()
        self.teacher.backbone.inner.enable_gradient_checkpointing()  # a gradient goes through it as well

    def phases(self, step: int) -> list[Phase]:
        return self.judge.phases(step, self.student.train_sample, self.networks, self.loss)

    def loss(self, x0: Tensor, cond: Condition, random: SampleRandom) -> Loss:
        """The loss on samples of the student; its gradient goes through teacher and fake score."""
        t = self.schedule.timestep(random.uniform("time"), *self.judge.range)
        eps = random.normal("noise", x0.shape[1:])

        def loss_of(x0: Tensor) -> Loss:
            return score_identity_loss(
                self.judge.teacher_score,
                self.judge.fake_score,
                x0,
                t,
                eps,
                cond,
                self.null,
                self.judge.guidance_scale,
                fake_guidance_scale=self.fake_guidance_scale,
                alpha=self.alpha,
            )

        return on_the_sample(loss_of, x0)
