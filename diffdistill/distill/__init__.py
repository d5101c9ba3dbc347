"""The score-distillation core: a sample is judged by score models, and the difference is its gradient.

Losses here are functions of tensors and denoisers. They hold no networks and draw no randomness of their own.

- `score_distillation_loss`: SDS, CSD, VSD (DMD) and ASD with any weight; the family is the table `RESIDUALS`
- `denoising_loss`: training the fake score, or a teacher
- `SampleRandom`: randomness that does not depend on the number of processes
- `generator_loss`, `discriminator_loss`, `DiscriminatorHead`: an optional adversarial term
"""

from .adversarial import DiscriminatorHead, discriminator_loss, generator_loss
from .denoising import DENOISING_WEIGHTS, denoising_loss
from .drop_condition import drop_condition
from .randomness import SampleRandom
from .residual import RESIDUALS, Judgement, Residual, judge, surrogate_loss
from .score_distillation import score_distillation_loss
from .weights import WEIGHTS, Weight

__all__ = [
    "DENOISING_WEIGHTS",
    "RESIDUALS",
    "WEIGHTS",
    "DiscriminatorHead",
    "Judgement",
    "Residual",
    "SampleRandom",
    "Weight",
    "denoising_loss",
    "discriminator_loss",
    "drop_condition",
    "generator_loss",
    "judge",
    "score_distillation_loss",
    "surrogate_loss",
]
