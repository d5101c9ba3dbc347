"""Score distillation on the codec: a frozen flow-matching denoiser judges the code that the one-step denoiser makes.

    rounded code --one step--> w --noise--> w_t --> frozen denoiser, fake score --> a gradient on w (DMD, VSD)

The judge is that of every other method (`methods.judge`). Here its teacher is the codec's own transformer as it was
pre-trained, its space is the normalised code w, and the condition is the rounded code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from diffdistill.codec.denoiser import DenoisingTransformer
from diffdistill.diffusion import Condition, Denoiser, FlowSchedule
from diffdistill.distill import WEIGHTS
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError

from .base import OptimizerSettings
from .judge import Judge
from .settings import FakeScore, JudgedTimes

CONDITION = "condition"


@dataclass(frozen=True)
class CodecJudge:
    """The score-distillation term of the codec, on its denoised code.

    Args:
        weight: of the term; 0 for none.
        of_time: weight of the residual by time, a name in `distill.WEIGHTS`.
        times: times at which latents are judged.
        optimizer: of the fake score.

    Raises:
        UserError: a setting is out of its range.
    """

    weight: float = 0.0
    of_time: str = "dmd"
    times: JudgedTimes = field(default_factory=JudgedTimes)
    optimizer: OptimizerSettings = OptimizerSettings(1e-4)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"judge.weight is {self.weight}; it must be a number from 0")
        look_up(WEIGHTS, self.of_time, "judge.of_time")


class LatentBackbone(nn.Module):
    """The codec's transformer with the signature of a backbone: times in thousandths, the condition in a mapping."""

    def __init__(self, inner: DenoisingTransformer, conditional: bool) -> None:
        super().__init__()
        self.inner, self.conditional = inner, conditional

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """The flow of x_t (B, C, h, w) at times (B,) in [0, 1000]."""
        condition = cond.get(CONDITION) if self.conditional and isinstance(cond, dict) else None
        made: Tensor = self.inner(x_t, time / 1000, condition)
        return made


class LatentTeacher:
    """The frozen, pre-trained denoiser, as far as a `Judge` needs a teacher."""

    def __init__(self, backbone: LatentBackbone) -> None:
        self.backbone, self.schedule = backbone.requires_grad_(False), FlowSchedule()

    def denoiser(self, network: Any = None) -> Denoiser:
        """The score model of the frozen network, or of another one of its shape."""
        return Denoiser(self.backbone if network is None else network, self.schedule, "flow")


def judge_of(settings: CodecJudge, backbone: LatentBackbone) -> Judge:
    """The judge: an unguided teacher, and a full copy of it as the fake score."""
    fake = FakeScore(optimizer=settings.optimizer, weight="flow", guidance_scale=1.0)
    return Judge(LatentTeacher(backbone), settings.times, 1.0, fake)  # type: ignore[arg-type]
