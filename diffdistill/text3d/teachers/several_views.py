"""A teacher that denoises several views of an object at once and is told their cameras: MVDream and MV-Adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition, Denoiser, Schedule
from diffdistill.models.families.unet import UNetBackbone
from diffdistill.models.teacher import Teacher
from diffdistill.text3d.cameras import Cameras

from .latent_parts import PromptRows, encoded, frozen_parts
from .view_teacher import ViewConditions


def text_and_camera(cond: Condition) -> tuple[Tensor, Tensor]:
    """The two parts of the condition of such a network.

    Raises:
        ValueError: a part is missing.
    """
    if not isinstance(cond, dict) or (text := cond.get("text")) is None or (camera := cond.get("camera")) is None:
        raise ValueError("the condition must be a mapping with the parts text and camera")
    return text, camera


class SeveralViews:
    """Such a network as a `ViewTeacher`. A sample is the latents of the views of an object, (V, C, h, w).

    Args:
        teacher: the pipeline whose UNet the network is made of.
        backbone: the network, for samples (B, V, C, h, w); its condition has the parts "text" (B, L, D) and "camera"
            (B, V, N).
        views: V.
        numbers: cameras to their N numbers, (V, N).
        prompts: all prompts of the run.
        negative_prompt: guidance leads away from it; "" for the empty prompt.
        schedule: of the network; None for that of the pipeline.
        ring: the only cameras that it knows; None where any will do.
    """

    side, can_adapt, told_background = None, True, False

    def __init__(
        self,
        teacher: Teacher,
        backbone: UNetBackbone,
        views: int,
        numbers: Callable[[Cameras], Tensor],
        prompts: Sequence[str],
        negative_prompt: str = "",
        schedule: Schedule | None = None,
        ring: Cameras | None = None,
    ) -> None:
        self.teacher, self.backbone, self.views, self.numbers = teacher, backbone, views, numbers
        self.schedule, self.ring = schedule or teacher.schedule, ring
        self.family = teacher.family  # its LoRA targets
        self.negative_prompt = negative_prompt
        teacher.report_cut(prompts)
        self.texts = PromptRows(teacher, [*prompts, negative_prompt])

    def denoiser(self, network: Any = None) -> Denoiser:
        """The teacher as a score model, or another network of the same process."""
        return Denoiser(self.backbone if network is None else network, self.schedule, self.teacher.prediction_type)

    def frozen(self, shared: bool) -> dict[str, nn.Module]:
        """The networks of the pipeline; see `ViewTeacher`."""
        return frozen_parts(self.teacher, shared)

    def prepare(self, device: torch.device) -> None:
        """Move to the device and embed the prompts."""
        self.teacher.to(device)
        self.backbone.to(device)
        self.texts.prepare(device)
        if not self.texts.on_demand:
            self.teacher.move_text_encoders("cpu")

    def cameras(self, uniforms: Tensor) -> Cameras | None:
        """Its own ring, if it has one."""
        return self.ring

    def conditions(self, prompts: Sequence[str], cameras: Cameras, background: Tensor) -> ViewConditions:
        """The conditions of R rows of V views; see `ViewTeacher`. The background is not told."""
        camera = self.numbers(cameras).unflatten(0, (len(prompts), self.views))
        null = self.texts([self.negative_prompt])
        return ViewConditions({"text": self.texts(prompts), "camera": camera}, {"text": null, "camera": camera})

    def encode(self, images: Tensor) -> Tensor:
        """Views (R, V, 3, H, W) in [0, 1] to latents (R, V, C, h, w), with a graph."""
        return encoded(self.teacher, images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def fake(self, network: nn.Module) -> nn.Module:
        """The network itself: it is told the cameras as the teacher is."""
        return network
