"""What text to 3D needs of a teacher of views.

    rendered views --encode, with a graph--> x0 --> Judge(teacher): noise, predictions, a gradient on x0
    prompts, cameras, backgrounds --conditions--> cond, null, negatives

A *row* is what a teacher denoises together: one view, or V views of one object. An object has one row or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition, Denoiser, PerpNeg, Schedule
from diffdistill.text3d.cameras import Cameras


@dataclass(frozen=True, eq=False)
class ViewConditions:
    """The conditions of R rows.

    Attributes:
        cond: of the prompts.
        null: of the empty or the negative prompt, with the same cameras and backgrounds.
        perp_neg: further negative prompts, which depend on the camera; None for none.
    """

    cond: Condition
    null: Condition
    perp_neg: PerpNeg | None = None


class ViewTeacher(Protocol):
    """A frozen diffusion model of views. A `Judge` reads `backbone`, `schedule` and `denoiser`."""

    @property
    def backbone(self) -> nn.Module:
        """Its network."""

    @property
    def schedule(self) -> Schedule:
        """Its noise schedule."""

    @property
    def views(self) -> int:
        """V, how many views it denoises together; a time is drawn for each row of V views."""

    @property
    def side(self) -> int | None:
        """Height and width in pixels at which views must be rendered; None where `encode` takes any size."""

    @property
    def can_adapt(self) -> bool:
        """Whether its network takes LoRA adapters."""

    @property
    def told_background(self) -> bool:
        """Whether it is told the colour of the background, which is then one colour."""

    def denoiser(self, network: Any = None) -> Denoiser:
        """The teacher as a score model, or another network of the same process and prediction type."""

    def frozen(self, shared: bool) -> dict[str, nn.Module]:
        """Its networks by name; without `backbone` where that is shared with a fake score."""

    def prepare(self, device: torch.device) -> None:
        """Move to the device and embed the prompts of the run."""

    def cameras(self, uniforms: Tensor) -> Cameras | None:
        """The cameras of a row, where the teacher knows certain ones alone; None where any will do.

        Args:
            uniforms: two numbers in [0, 1), which choose among them.
        """

    def conditions(self, prompts: Sequence[str], cameras: Cameras, background: Tensor) -> ViewConditions:
        """The conditions of R rows.

        Args:
            prompts: one for each row, R of them.
            cameras: R V of them, row after row.
            background: colours in [0, 1], (R, 3).
        """

    def encode(self, images: Tensor) -> Tensor:
        """Views (R, V, 3, H, W) in [0, 1] to samples x0 of R rows, with a graph."""

    def fake(self, network: nn.Module) -> nn.Module:
        """The fake score of a copy of the network, or of the network with adapters: it is told the cameras."""
