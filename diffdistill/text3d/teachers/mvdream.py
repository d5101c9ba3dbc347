"""MVDream as a teacher of views: a UNet of Stable Diffusion that denoises four views of an object at once.

    x_t (B, V, C, h, w), one time for each object --> (B V, C, h, w) --UNet--> (B, V, C, h, w)
                                                          |      self-attention sees all V views (`JointViews`)
    camera (B, V, 16) --the UNet's class embedding------->'      and the prompt is that of the object

Source: MVDream (arXiv 2308.16512). Its camera embedding, 16 numbers through two linear layers with a SiLU between them,
added to the embedding of the time, is what diffusers calls a class embedding of type "projection". So its network is
a stock `UNet2DConditionModel`, and a folder that `load_teacher` reads holds it.

Notable:
- prompts do not name the direction: the network knows it from the cameras;
- the stock pipeline of such a folder cannot draw, since it tells the network no cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition, Denoiser
from diffdistill.errors import UserError, shown
from diffdistill.models.families.unet import UNetBackbone, call_unet
from diffdistill.models.teacher import Teacher
from diffdistill.text3d.cameras import Cameras

from .camera_embedding import NUMBERS, camera_numbers
from .joint_attention import join_views
from .latent_parts import PromptRows, encoded, frozen_parts, require_plain
from .view_teacher import ViewConditions

VIEWS = 4


def takes_cameras(config: Mapping[str, Any]) -> bool:
    """Whether a UNet with these settings is told cameras, as MVDream's is.

    Raises:
        UserError: its class embedding takes another number of values than a camera has.
    """
    if config.get("class_embed_type") != "projection":
        return False
    width = config.get("projection_class_embeddings_input_dim")
    if width != NUMBERS:
        raise UserError(
            f"the UNet's projection_class_embeddings_input_dim is {shown(width)}; a camera has {NUMBERS} numbers"
        )
    return True


class JointViewsUNet(UNetBackbone):
    """A UNet that denoises V views of an object together.

    Its condition has the parts "text" (B, L, D) and "camera" (B, V, 16), and its samples are (B, V, C, h, w).

    Args:
        inner: a UNet2DConditionModel that takes cameras. Its self-attention is changed in place (`join_views`).
        views: V.
    """

    def __init__(self, inner: nn.Module, views: int = VIEWS) -> None:
        super().__init__(inner)
        self.views = views
        join_views(inner, views)

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        if not isinstance(cond, dict) or (text := cond.get("text")) is None or (camera := cond.get("camera")) is None:
            raise ValueError("the condition must be a mapping with the parts text and camera")
        if x_t.shape[1] != self.views:
            raise ValueError(f"there are {x_t.shape[1]} views of an object; this network takes {self.views}")
        made = call_unet(
            self.inner,
            self.in_own_dtype(x_t.flatten(0, 1)),
            time.repeat_interleave(self.views),
            self.in_own_dtype(text).repeat_interleave(self.views, 0),
            class_labels=self.in_own_dtype(camera.flatten(0, 1)),
        )
        return made.unflatten(0, (-1, self.views))


class MVDreamViews:
    """MVDream as a `ViewTeacher`. A sample is the latents of the views of an object, (V, C, h, w).

    Args:
        teacher: from `load_teacher`; its UNet takes cameras.
        prompts: all prompts of the run.
        negative_prompt: guidance leads away from it; "" for the empty prompt.
        views: V.

    Raises:
        UserError: the teacher takes no cameras, or is of another family.
    """

    side, can_adapt, told_background = None, True, False

    def __init__(self, teacher: Teacher, prompts: Sequence[str], negative_prompt: str = "", views: int = VIEWS) -> None:
        inner = require_plain(teacher).inner
        if not takes_cameras(inner.config):
            raise UserError(f"the teacher {teacher.source} is told no cameras; its UNet has no projection of them")
        self.teacher, self.views, self.negative_prompt = teacher, views, negative_prompt
        self.backbone, self.schedule = JointViewsUNet(inner, views), teacher.schedule
        self.family = teacher.family  # its LoRA targets
        teacher.report_cut(prompts)
        self.texts = PromptRows(teacher, [*prompts, negative_prompt])

    def denoiser(self, network: Any = None) -> Denoiser:
        """The teacher as a score model, or another network of the same process."""
        return self.teacher.denoiser(self.backbone if network is None else network)

    def frozen(self, shared: bool) -> dict[str, nn.Module]:
        """The networks of the pipeline; see `ViewTeacher`."""
        return frozen_parts(self.teacher, shared)

    def prepare(self, device: torch.device) -> None:
        """Move to the device and embed the prompts."""
        self.teacher.to(device)
        self.texts.prepare(device)
        if not self.texts.on_demand:
            self.teacher.move_text_encoders("cpu")

    def conditions(self, prompts: Sequence[str], cameras: Cameras, background: Tensor) -> ViewConditions:
        """The conditions of R rows of V views; see `ViewTeacher`. The background is not told."""
        camera = camera_numbers(cameras).unflatten(0, (len(prompts), self.views))
        null = self.texts([self.negative_prompt])
        return ViewConditions({"text": self.texts(prompts), "camera": camera}, {"text": null, "camera": camera})

    def encode(self, images: Tensor) -> Tensor:
        """Views (R, V, 3, H, W) in [0, 1] to latents (R, V, C, h, w), with a graph."""
        return encoded(self.teacher, images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def fake(self, network: nn.Module) -> nn.Module:
        """The network itself: it is told the cameras as the teacher is."""
        return network
