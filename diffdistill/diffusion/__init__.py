"""The diffusion process: schedules, conditions, score models, guidance and samplers. It needs torch only.

- `VPSchedule`, `FlowSchedule`: how much signal and noise x_t holds
- `Condition`: what a score model is conditioned on, and the functions that take rows, join, drop and move it
- `Denoiser`: a network as a score model; `Prediction`: its output, read as x0, eps, v, flow or score
- `guided`, `GuidedDenoiser`, `perp_neg`: classifier-free guidance and negative prompts
- `ddim`, `euler`, `dpm_solver_pp_2m`: samplers that agree with those of diffusers
- `TwoTimeDenoiser`, `any_step`: networks that also get the time at which a step ends, and sampling with them
- `VPOnStraightPath`: a variance-preserving network used on the straight path
- `GaussianTeacher`, `MixtureTeacher`: exact score models, for tests
"""

from .any_step import (
    TwoTimeDenoiser,
    TwoTimeModel,
    TwoTimeNetwork,
    any_step,
    any_step_times,
    guided_any_step,
    preserve_energy,
)
from .betas import BETA_SCHEDULES, beta_schedule, zero_terminal_snr
from .condition import (
    Condition,
    check_condition,
    concatenate,
    drop_condition,
    expand,
    move,
    repeat,
    rows_of,
    take_rows,
)
from .denoiser import Denoiser, Network, ScoreModel, expand_time
from .gaussian import GaussianTeacher
from .guidance import (
    GuidedDenoiser,
    PerpNeg,
    combine_perp_neg,
    cond_and_null,
    guided,
    perp_neg,
    perpendicular,
    predictions,
)
from .mixture import MixtureTeacher
from .prediction import (
    PREDICTION_TYPES,
    Prediction,
    PredictionType,
    check_prediction_type,
    combine,
    from_diffusers_prediction_type,
)
from .samplers import ddim, ddim_step, dpm_solver_pp_2m, euler, levels_or_end, timesteps
from .schedule import FlowSchedule, Schedule, VPSchedule, broadcast, linear_combination
from .vp_on_straight_path import VPOnStraightPath

__all__ = [
    "BETA_SCHEDULES",
    "PREDICTION_TYPES",
    "Condition",
    "Denoiser",
    "FlowSchedule",
    "GaussianTeacher",
    "GuidedDenoiser",
    "MixtureTeacher",
    "Network",
    "PerpNeg",
    "Prediction",
    "PredictionType",
    "Schedule",
    "ScoreModel",
    "TwoTimeDenoiser",
    "TwoTimeModel",
    "TwoTimeNetwork",
    "VPOnStraightPath",
    "VPSchedule",
    "any_step",
    "any_step_times",
    "beta_schedule",
    "broadcast",
    "check_condition",
    "check_prediction_type",
    "combine",
    "combine_perp_neg",
    "concatenate",
    "cond_and_null",
    "ddim",
    "ddim_step",
    "dpm_solver_pp_2m",
    "drop_condition",
    "euler",
    "expand",
    "expand_time",
    "from_diffusers_prediction_type",
    "guided",
    "guided_any_step",
    "levels_or_end",
    "linear_combination",
    "move",
    "perp_neg",
    "perpendicular",
    "predictions",
    "preserve_energy",
    "repeat",
    "rows_of",
    "take_rows",
    "timesteps",
    "zero_terminal_snr",
]
