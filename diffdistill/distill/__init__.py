"""The score-distillation core: a sample is judged by score models, and the difference is its gradient.

Losses here are functions of tensors and denoisers. They hold no networks and draw no randomness of their own.

- `score_distillation_loss`: SDS, SJC, CSD, NFSD, VSD (DMD), ASD, ISM, SDI with any weight; the table `RESIDUALS`
- `time_range`: which times are judged as a run goes on; `earlier`: the other end of ISM's interval
- `denoising_loss`: training the fake score, or a teacher
- `teacher_signal`, `bootstrap_loss`, `boundary_loss`: BOOT, a student of the teacher's trajectory
- `SampleRandom`: randomness that does not depend on the number of processes
- `generator_loss`, `discriminator_loss`, `DiscriminatorHead`: an optional adversarial term
"""

from .adversarial import DiscriminatorHead, discriminator_loss, generator_loss
from .bootstrap import (
    BOOTSTRAP_SOLVERS,
    BOOTSTRAP_WEIGHTS,
    bootstrap_loss,
    boundary_loss,
    signal_step,
    signal_update,
    teacher_signal,
)
from .denoising import DENOISING_WEIGHTS, denoising_loss
from .inversion import Inversion, ddim_invert
from .judging import judge
from .randomness import SampleRandom
from .residual import RESIDUALS, Judgement, Residual, surrogate_loss
from .score_distillation import score_distillation_loss
from .times import ANNEALS, earlier, time_range
from .weights import WEIGHTS, Weight

__all__ = [
    "ANNEALS",
    "BOOTSTRAP_SOLVERS",
    "BOOTSTRAP_WEIGHTS",
    "DENOISING_WEIGHTS",
    "RESIDUALS",
    "WEIGHTS",
    "DiscriminatorHead",
    "Inversion",
    "Judgement",
    "Residual",
    "SampleRandom",
    "Weight",
    "bootstrap_loss",
    "boundary_loss",
    "ddim_invert",
    "denoising_loss",
    "discriminator_loss",
    "earlier",
    "generator_loss",
    "judge",
    "score_distillation_loss",
    "signal_step",
    "signal_update",
    "surrogate_loss",
    "teacher_signal",
    "time_range",
]
