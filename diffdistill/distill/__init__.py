"""The core: score models judge a sample, and the difference of their predictions is its gradient.

Losses here are functions of tensors and score models. They hold no networks and draw no randomness of their own.

- `score_distillation_loss`: SDS, SJC, CSD, NFSD, VSD (DMD), ASD, ISM, SDI, any weight (`RESIDUALS`, `WEIGHTS`)
- `time_range`: which times are judged as a run proceeds; `earlier`: the other end of ISM's interval
- `denoising_loss`: a fake score, or a teacher
- `score_identity_loss`: SiD
- `few_step_times`, `few_step_sample`, `backward_simulation`: generators of several steps (DMD2)
- `generator_loss`, `discriminator_loss`, `DiscriminatorHead`: an adversarial term
- `divergence_weights`: f-divergences by the discriminator's density ratio (f-distill)
- `feature_distance`: a perceptual distance in a network's inner features
- `info_nce`: contrastive self-distillation (DDAE++)
- `teacher_signal`, `bootstrap_loss`, `boundary_loss`: BOOT
- `two_step_target`, `progressive_loss`, `ddim_path`: progressive distillation
- `consistency_loss`, `consistency_sample`: consistency distillation
- `flow_matching_loss`, `mean_flow_loss`, `shortcut_loss`, `self_evaluation_loss`: networks of two times, from data
- `SampleRandom`: randomness that does not depend on the number of processes
"""

from .adversarial import DiscriminatorHead, discriminator_loss, generator_loss
from .backward_simulation import backward_simulation, few_step_sample, few_step_times
from .bootstrap import (
    BOOTSTRAP_SOLVERS,
    BOOTSTRAP_WEIGHTS,
    BootstrapWeight,
    bootstrap_loss,
    boundary_loss,
    signal_step,
    signal_update,
    teacher_signal,
)
from .consistency import (
    Boundary,
    consistency_loss,
    consistency_sample,
    guided_ddim_step,
    pseudo_huber,
    skipped_times,
)
from .contrast import info_nce
from .denoising import DENOISING_WEIGHTS, DenoisingError, denoising_loss
from .divergence import DIVERGENCES, divergence_weights
from .features import feature_distance
from .flow_matching import check_two_times, flow_matching_loss, logit_normal_times
from .inversion import Inversion, ddim_invert
from .judging import JudgingOptions, judge
from .mean_flow import (
    Derivative,
    full_precision,
    guided_velocity,
    mean_flow_loss,
    mean_flow_times,
    total_derivative,
)
from .progressive import (
    PROGRESSIVE_WEIGHTS,
    ProgressiveWeight,
    ddim_path,
    halving_grid,
    halvings,
    progressive_loss,
    stage_at,
    two_step_target,
)
from .randomness import SampleRandom
from .residual import RESIDUALS, Judgement, Residual, rms, surrogate_loss
from .score_distillation import score_distillation_loss
from .score_identity import on_the_sample, score_identity_loss
from .self_evaluation import (
    SelfEvaluation,
    earlier_times,
    fake_branch_loss,
    scaled_to,
    self_evaluate,
    self_evaluation_loss,
    self_share,
)
from .shortcut import shortcut_loss, shortcut_target, shortcut_times
from .tables import look_up
from .times import ANNEALS, earlier, time_range
from .weights import WEIGHTS, Weight, teacher_error

__all__ = [
    "ANNEALS",
    "BOOTSTRAP_SOLVERS",
    "BOOTSTRAP_WEIGHTS",
    "DENOISING_WEIGHTS",
    "DIVERGENCES",
    "PROGRESSIVE_WEIGHTS",
    "RESIDUALS",
    "WEIGHTS",
    "BootstrapWeight",
    "Boundary",
    "DenoisingError",
    "Derivative",
    "DiscriminatorHead",
    "Inversion",
    "Judgement",
    "JudgingOptions",
    "ProgressiveWeight",
    "Residual",
    "SampleRandom",
    "SelfEvaluation",
    "Weight",
    "backward_simulation",
    "bootstrap_loss",
    "boundary_loss",
    "check_two_times",
    "consistency_loss",
    "consistency_sample",
    "ddim_invert",
    "ddim_path",
    "denoising_loss",
    "discriminator_loss",
    "divergence_weights",
    "earlier",
    "earlier_times",
    "fake_branch_loss",
    "feature_distance",
    "few_step_sample",
    "few_step_times",
    "flow_matching_loss",
    "full_precision",
    "generator_loss",
    "guided_ddim_step",
    "guided_velocity",
    "halving_grid",
    "halvings",
    "info_nce",
    "judge",
    "logit_normal_times",
    "look_up",
    "mean_flow_loss",
    "mean_flow_times",
    "on_the_sample",
    "progressive_loss",
    "pseudo_huber",
    "rms",
    "scaled_to",
    "score_distillation_loss",
    "score_identity_loss",
    "self_evaluate",
    "self_evaluation_loss",
    "self_share",
    "shortcut_loss",
    "shortcut_target",
    "shortcut_times",
    "signal_step",
    "signal_update",
    "skipped_times",
    "stage_at",
    "surrogate_loss",
    "teacher_error",
    "teacher_signal",
    "time_range",
    "total_derivative",
    "two_step_target",
]
