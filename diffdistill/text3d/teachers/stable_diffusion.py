"""Stable Diffusion 1.x and 2.x as a teacher of views: one view at a time, with prompts that name the direction.

    view --bilinear to the teacher's size--> autoencoder, with a graph --> x0 --> Judge
    prompt, azimuth, elevation --> "a mug, side view" | a blend of two directions, and negative prompts (perp-neg)

Notable:
- a row is one view, so each view of an object has a time and a noise of its own;
- the teacher is not told the camera; a fake score is (`FakeWithCamera`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition, Denoiser, PerpNeg
from diffdistill.models.families.unet import UNetBackbone
from diffdistill.models.teacher import Teacher
from diffdistill.text3d.cameras import Cameras

from .camera_embedding import FakeWithCamera, camera_numbers
from .latent_parts import PromptRows, encoded, frozen_parts, require_plain
from .view_prompts import ViewPrompts, blend, directions, with_directions
from .view_teacher import ViewConditions


class ViewUNet(UNetBackbone):
    """A UNet of Stable Diffusion, whose condition has the parts "text" (R, L, D) and "camera"; it reads the first."""

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, dict) or cond.get("text") is None:
            raise ValueError("the condition must be a mapping with the parts text and camera")
        return super().forward(x_t, time, cond["text"])


class StableDiffusionViews:
    """Stable Diffusion as a `ViewTeacher`. A sample is the latent of one view, (C, h, w).

    Args:
        teacher: from `load_teacher`; its network takes text alone.
        prompts: all prompts of the run.
        how: how prompts depend on the camera.
        negative_prompt: guidance leads away from it; "" for the empty prompt.

    Raises:
        UserError: the teacher is of another family.
    """

    views, side, can_adapt, told_background = 1, None, True, False

    def __init__(
        self, teacher: Teacher, prompts: Sequence[str], how: ViewPrompts = ViewPrompts(), negative_prompt: str = ""
    ) -> None:
        self.teacher, self.how = teacher, how
        self.mode = "words" if how.mode == "auto" else how.mode
        self.backbone, self.schedule = ViewUNet(require_plain(teacher).inner), teacher.schedule
        self.family = teacher.family  # its LoRA targets
        self.negative_prompt = negative_prompt
        texts = [] if self.mode == "none" else list(chain.from_iterable(map(with_directions, prompts)))
        teacher.report_cut(texts or prompts)
        self.texts = PromptRows(teacher, [*texts, *prompts, negative_prompt])  # a generator reads the bare prompts

    def denoiser(self, network: Any = None) -> Denoiser:
        """The teacher as a score model, or another network of the same process."""
        return self.teacher.denoiser(self.backbone if network is None else network)

    def frozen(self, shared: bool) -> dict[str, nn.Module]:
        """The networks of the pipeline; see `ViewTeacher`."""
        return frozen_parts(self.teacher, shared)

    def prepare(self, device: torch.device) -> None:
        """Move to the device and embed the prompts in all directions."""
        self.teacher.to(device)
        self.texts.prepare(device)
        if not self.texts.on_demand:
            self.teacher.move_text_encoders("cpu")

    def cameras(self, uniforms: Tensor) -> None:
        """Any cameras will do."""

    def conditions(self, prompts: Sequence[str], cameras: Cameras, background: Tensor) -> ViewConditions:
        """The conditions of R views; see `ViewTeacher`. The background is not told."""
        camera = camera_numbers(cameras)
        null = self.texts([self.negative_prompt])
        empty = {"text": null, "camera": camera}
        if self.mode == "none":
            return ViewConditions({"text": self.texts(prompts), "camera": camera}, empty)
        angles = cameras.azimuth_deg, cameras.elevation_deg
        if self.mode == "words":
            which = directions(*angles, self.how).tolist()
            texts = [with_directions(prompt)[k] for prompt, k in zip(prompts, which, strict=True)]
            return ViewConditions({"text": self.texts(texts), "camera": camera}, empty)
        asked = blend(*angles, self.how)
        four = torch.stack([self.texts(with_directions(prompt)) for prompt in prompts])  # (R, 4, L, D)
        text = torch.einsum("rk,rkld->rld", asked.positive.to(four), four)
        negatives: list[Condition] = []
        for which_one in asked.negatives.unbind(1):
            chosen = four[torch.arange(len(four), device=four.device), which_one.clamp_min(0)]
            negatives.append({"text": torch.where((which_one < 0)[:, None, None], null, chosen), "camera": camera})
        return ViewConditions({"text": text, "camera": camera}, empty, PerpNeg(negatives, asked.weights.unbind(1)))

    def encode(self, images: Tensor) -> Tensor:
        """Views (R, 1, 3, H, W) in [0, 1] to latents (R, C, h, w), with a graph."""
        return encoded(self.teacher, images.flatten(0, 1))

    def fake(self, network: nn.Module) -> nn.Module:
        """The network with an embedding of the camera."""
        assert isinstance(network, ViewUNet)
        return FakeWithCamera(network)
