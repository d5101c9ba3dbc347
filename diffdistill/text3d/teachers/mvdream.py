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

from torch import Tensor, nn

from diffdistill.diffusion import Condition
from diffdistill.errors import UserError, shown
from diffdistill.models.families.unet import UNetBackbone, call_unet
from diffdistill.models.teacher import Teacher

from .camera_embedding import NUMBERS, camera_numbers
from .joint_attention import join_views
from .latent_parts import require_plain
from .several_views import SeveralViews, text_and_camera

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
        text, camera = text_and_camera(cond)
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


def mvdream_views(teacher: Teacher, prompts: Sequence[str], negative_prompt: str = "") -> SeveralViews:
    """MVDream as a teacher of views.

    Args:
        teacher: from `load_teacher`; its UNet takes cameras.
        prompts: all prompts of the run.
        negative_prompt: guidance leads away from it; "" for the empty prompt.

    Raises:
        UserError: the teacher takes no cameras, or is of another family.
    """
    inner = require_plain(teacher).inner
    if not takes_cameras(inner.config):
        raise UserError(f"the teacher {teacher.source} is told no cameras; its UNet has no projection of them")
    return SeveralViews(teacher, JointViewsUNet(inner), VIEWS, camera_numbers, prompts, negative_prompt)
