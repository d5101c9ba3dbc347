"""Settings of text to 3D: how views are judged and rendered, and further terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from diffdistill.distill import WEIGHTS
from diffdistill.distill.tables import look_up
from diffdistill.errors import UserError
from diffdistill.text3d.regularisers import LinearSchedule

from .base import OptimizerSettings, check_eta, check_guidance, check_shares
from .settings import FakeScore, JudgedTimes


@dataclass(frozen=True)
class Judging:
    """How views are judged.

    Args:
        residual: a name in `distill.RESIDUALS`: sds, csd, asd or vsd.
        weight: weight of the residual by time, a name in `distill.WEIGHTS`.
        times: the range of times.
        guidance_scale: the prior's guidance over the run; 1 is none.
        eta: with asd, the largest shift of the later time.
        finish: null, or sds or csd: the residual from `finish_from` on. What asd and csd do to colours, sds repairs.
        finish_from: share of the run, in [0, 1].
        fake: with vsd, the fake score: a full copy of the prior, with one update a step on the views of that step. So
            `updates` is 1, `warmup` 0, `sample_dropped` false and `train_guidance_scale` 1.

    Raises:
        UserError: a setting is out of its range, or the residual needs what views do not have.
    """

    residual: Literal["sds", "csd", "asd", "vsd"] = "sds"
    weight: str = "sigma2"
    times: JudgedTimes = JudgedTimes(0.6, 0.98, 0.3, 0.7)
    guidance_scale: LinearSchedule = LinearSchedule(0.0, 3.0, 1.5, 1.0)
    eta: float = 0.1
    finish: Literal["sds", "csd"] | None = None
    finish_from: float = 0.5
    fake: FakeScore = field(
        default_factory=lambda: FakeScore(optimizer=OptimizerSettings(1e-3, (0.0, 0.99)), weight="v")
    )

    def __post_init__(self) -> None:
        if self.residual not in ("sds", "csd", "asd", "vsd"):
            raise UserError(f"judging.residual is {self.residual!r}; it must be sds, csd, asd or vsd")
        if self.finish not in (None, "sds", "csd"):
            raise UserError(f"judging.finish is {self.finish!r}; it must be sds, csd or null")
        if self.finish is not None and self.residual == "vsd":
            raise UserError("judging.finish is for a run without a fake score; with vsd it must be null")
        check_shares(**{"judging.finish_from": self.finish_from})
        look_up(WEIGHTS, self.weight, "judging.weight")
        check_eta(**{"judging.eta": self.eta})
        for scale in (self.guidance_scale.first, self.guidance_scale.last):
            check_guidance(**{"judging.guidance_scale": scale})
        possible = {"network": "full", "updates": 1, "warmup": 0, "sample_dropped": False, "train_guidance_scale": 1.0}
        for name, value in possible.items() if self.residual == "vsd" else ():
            if getattr(self.fake, name) != value:
                raise UserError(f"judging.fake.{name} is {getattr(self.fake, name)!r}; in text to 3D it is {value!r}")


@dataclass(frozen=True)
class Rendering:
    """How views are rendered for the prior.

    Args:
        resolution: nodes of the grid along a side.
        samples: along each ray.
        rings: rings of cameras in the pool; 0 for a new ring in each step.
        sharpness: k of the density over the run; see `volume.volsdf_density`.
        share_of_white: how often the background is white; else it has a random colour.

    Raises:
        UserError: a setting is out of its range.
    """

    resolution: int = 32
    samples: int = 32
    rings: int = 48
    sharpness: LinearSchedule = LinearSchedule(0.0, 20.0, 60.0, 0.5)
    share_of_white: float = 0.5

    def __post_init__(self) -> None:
        check_shares(share_of_white=self.share_of_white)
        for name, least in (("resolution", 4), ("samples", 1), ("rings", 0)):
            if getattr(self, name) < least:
                raise UserError(f"rendering.{name} is {getattr(self, name)}; it must be {least} or more")
        for k in (self.sharpness.first, self.sharpness.last):
            if not 0 < k < math.inf:
                raise UserError(f"rendering.sharpness is {k}; it must be a number above 0")


@dataclass(frozen=True)
class Regularisers:
    """Weights of terms on the rendered objects, over the run; see `text3d.regularisers`.

    Args:
        sparsity: on opacities.
        opaque: on opacities.
        eikonal: on the differences of the baked signed distance.

    Raises:
        UserError: a weight is negative or not finite.
    """

    sparsity: LinearSchedule = LinearSchedule.constant(0.0)
    opaque: LinearSchedule = LinearSchedule.constant(0.0)
    eikonal: LinearSchedule = LinearSchedule.constant(1e-3)

    def __post_init__(self) -> None:
        for name in ("sparsity", "opaque", "eikonal"):
            for weight in (getattr(self, name).first, getattr(self, name).last):
                if not 0 <= weight < math.inf:
                    raise UserError(f"regularisers.{name} is {weight}; a weight is a number from 0")
