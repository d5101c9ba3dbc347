"""A student of a whole trajectory: the teacher's UNet, which always gets the noise at T*, with a target time besides.

There are two ways to condition it on the target time:

    added      The UNet gets T*, the time of its input. The target enters as a class label does, through a second time
               embedding whose last layer starts at zero. At first every target gives the teacher's prediction at T*.
    replaced   The UNet gets the target in place of T*, so nothing is added to it. At first a target below T* gives
               what the teacher predicts for noise that it takes for a nearly finished image.

In both ways the target enters the network through its time embedding alone. So for one fixed target the UNet is a stock
one that is called at T*, with the difference in the last bias of the time embedding.
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
    """A UNet2DConditionModel that is conditioned on a target time.

    Args:
        inner: the UNet, which is changed in place.
        t_star: T*, the time of its input.
        target_time: "added" or "replaced".

    Raises:
        UserError: the network is no such UNet, or its time embedding cannot take a target, because the UNet takes
            classes or because the embedding ends in an activation.
    """

    def __init__(self, inner: Any, t_star: int, target_time: TargetTime = "added") -> None:
        super().__init__()
        unet: Any = check_plain_unet(inner, "the target time of BOOT's student")
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
        """Predict.

        Args:
            z: noise (B, C, H, W).
            target: target times (B,).
            cond: prompt embeddings (B, L, D).
        """
        unet: Any = self.inner
        cond = cond.to(z.dtype)  # of a teacher in a lower precision
        if self.target_time == "replaced":
            return call_unet(unet, z, target, cond)
        return call_unet(unet, z, torch.full_like(target, self.t_star), cond, class_labels=target)

    @torch.no_grad()
    def at(self, target: int) -> Any:
        """A stock UNet2DConditionModel, a copy, that predicts at T* what this network predicts for the target."""
        unet = copy.deepcopy(self.inner)
        dim = unet.config.time_cond_proj_dim

        def embed(layers: Any, time: int, condition: Tensor | None = None) -> Tensor:
            device = layers.linear_1.weight.device
            waves = unet.time_proj(torch.tensor([time], device=device))
            beside = None if condition is None else condition.to(device).double()
            embedding: Tensor = copy.deepcopy(layers).double()(waves.double(), beside)[0]
            return embedding

        if self.target_time == "replaced":
            scale = None if dim is None else unguided(dim)  # the guidance scale goes into the time embedding
            first, other = (embed(unet.time_embedding, time, scale) for time in (self.t_star, target))
            difference = other - first
        else:
            difference = embed(unet.class_embedding, target)
            unet.class_embedding = None
            unet.register_to_config(class_embed_type=None)
        bias = unet.time_embedding.linear_2.bias
        bias.copy_(bias.double() + difference)
        return unet
