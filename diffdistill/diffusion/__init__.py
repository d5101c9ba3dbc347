"""The diffusion process: schedules, kinds of prediction, denoisers, guidance and samplers. Needs torch only."""

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
from .denoiser import Denoiser, Network, ScoreModel
from .gaussian import GaussianTeacher
from .guidance import PerpNeg, combine_perp_neg, cond_and_null, guided, perp_neg, perpendicular, predictions
from .mixture import MixtureTeacher
from .prediction import (
    PREDICTION_TYPES,
    Prediction,
    PredictionType,
    combine,
    from_diffusers_prediction_type,
)
from .samplers import ddim, dpm_solver_pp_2m, euler, timesteps
from .schedule import FlowSchedule, Schedule, VPSchedule, broadcast

__all__ = [
    "PREDICTION_TYPES",
    "Condition",
    "Denoiser",
    "FlowSchedule",
    "GaussianTeacher",
    "MixtureTeacher",
    "Network",
    "PerpNeg",
    "Prediction",
    "PredictionType",
    "Schedule",
    "ScoreModel",
    "VPSchedule",
    "broadcast",
    "check_condition",
    "combine",
    "combine_perp_neg",
    "concatenate",
    "cond_and_null",
    "ddim",
    "dpm_solver_pp_2m",
    "drop_condition",
    "euler",
    "expand",
    "from_diffusers_prediction_type",
    "guided",
    "move",
    "perp_neg",
    "perpendicular",
    "predictions",
    "repeat",
    "rows_of",
    "take_rows",
    "timesteps",
]
