"""A student of a whole trajectory: the teacher's UNet, always fed the noise at T*, that is told a target time as well.

Two ways to tell it:

    added      the UNet is told T*, its input's time; the target enters as a class label does, through a second time
               embedding whose last layer starts at zero: at first every target gives the teacher's answer at T*
    replaced   the UNet is told the target in place of T*: nothing is added to it, and at first a target below T* gives
               what the teacher makes of noise that it takes for a nearly finished picture

Either way the target reaches the network through its time embedding alone, so for one target the UNet is a stock one
called at T*, with the difference in the embedding's last bias.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .families.unet import call_unet, check_plain_unet, unguided

TargetTime = Literal["added", "replaced"]


class TargetTimeUNet(nn.Module):
    """forward: z (B, C, H, W), target times (B,), cond (B, L, D).

    Args:
        inner: a UNet2DConditionModel, which is changed.
        t_star: the time of its input.
        target_time: added or replaced.

    Raises:
        UserError: a network of another kind, or a UNet whose time embedding cannot take a target: one with classes, or
            with a last activation.
    """

    def __init__(self, inner: Any, t_star: int, target_time: TargetTime = "added") -> None:
        super().__init__()
        unet: Any = check_plain_unet(inner, "a target time")
        if unet.time_embedding.post_act is not None:
            raise UserError("the teacher's time embedding ends in an activation; a target time cannot be exported")
        if target_time == "added":
            if unet.class_embedding is not None:
                raise UserError("the teacher's UNet takes classes already; set target_time to replaced")
            unet.class_embedding = copy.deepcopy(unet.time_embedding)
            nn.init.zeros_(unet.class_embedding.linear_2.weight)
            nn.init.zeros_(unet.class_embedding.linear_2.bias)
            unet.register_to_config(class_embed_type="timestep")
        self.inner, self.t_star, self.target_time = unet, t_star, target_time

    def forward(self, z: Tensor, target: Tensor, cond: Tensor) -> Tensor:
        unet: Any = self.inner
        if self.target_time == "replaced":
            return call_unet(unet, z, target, cond)
        told = torch.full_like(target, self.t_star)
        return call_unet(unet, z, told, cond, class_labels=target)

    @torch.no_grad()
    def at(self, target: int) -> Any:
        """A copy as a stock UNet2DConditionModel that, called at T*, computes what this one does for the target."""
        unet = copy.deepcopy(self.inner)
        dim = unet.config.time_cond_proj_dim

        def embed(layers: Any, time: int, condition: Tensor | None = None) -> Tensor:
            device = layers.linear_1.weight.device
            waves = unet.time_proj(torch.tensor([time], device=device))
            beside = None if condition is None else condition.to(device).double()
            embedding: Tensor = copy.deepcopy(layers).double()(waves.double(), beside)[0]
            return embedding

        if self.target_time == "replaced":
            scale = None if dim is None else unguided(dim)  # of guidance, which the time embedding takes in
            first, other = (embed(unet.time_embedding, time, scale) for time in (self.t_star, target))
            difference = other - first
        else:
            difference = embed(unet.class_embedding, target)
            unet.class_embedding = None
            unet.register_to_config(class_embed_type=None)
        bias = unet.time_embedding.linear_2.bias
        bias.copy_(bias.double() + difference)
        return unet
