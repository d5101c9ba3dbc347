"""A diffusers UNet2DConditionModel that is conditioned on two times: the start and the end of a step.

    e = MLP_t(sin(t)) + MLP_s(sin(t - s))         in place of e = MLP_t(sin(t)), everywhere (Self-E, section 3.1)

MLP_s is part of the UNet's own time embedding, and its last layer starts at zero. So at first the network predicts, for
any s, what the network of one time predicts, to the bit. Everything else is stock, and so are the names of its weights.

The UNet of a Stable-Diffusion-class teacher was trained on another process. With a `VPOnStraightPath` around it, its
predictions become velocities of the straight path, exactly, and the model starts as the teacher.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from diffdistill.diffusion.vp_on_straight_path import VPOnStraightPath
from diffdistill.errors import UserError

from .families.unet import check_plain_unet
from .pipeline_folder import PipelineFolder, first_line, quiet


class TwoTimeEmbedding(TimestepEmbedding):
    """The time embedding, plus a second one of the same shape for t - s where a `condition` is given.

    The weights have the names of the stock class; those of the second embedding are under `interval`.

    Args:
        one: the UNet's own time embedding.

    Raises:
        UserError: the embedding is not the stock one.
    """

    def __init__(self, one: Any) -> None:
        first, second = one.linear_1, one.linear_2
        if type(one) is not TimestepEmbedding or one.cond_proj is not None or one.post_act is not None:
            raise UserError("a second time needs a UNet with the plain time embedding (no guidance embedding)")
        super().__init__(first.in_features, first.out_features, out_dim=second.out_features)
        self.interval: TimestepEmbedding = TimestepEmbedding(
            first.in_features, first.out_features, out_dim=second.out_features
        )
        self.act = one.act
        self.interval.act = copy.deepcopy(one.act)
        self.linear_1, self.linear_2 = first, second
        nn.init.zeros_(self.interval.linear_2.weight)
        nn.init.zeros_(self.interval.linear_2.bias)
        self.interval.to(first.weight)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """The embedding, from sin(t) as `sample` and sin(t - s) as `condition`, each (B, D)."""
        e: Tensor = super().forward(sample)
        return e if condition is None else e + self.interval(condition)


def add_second_time(unet: Any) -> Any:
    """Give a UNet the second embedding, in place, and return it. A UNet that has it already stays as it is.

    Raises:
        UserError: the network is no such UNet, or its time embedding is not the stock one.
    """
    check_plain_unet(unet, "a second time")
    if not isinstance(unet.time_embedding, TwoTimeEmbedding):
        unet.time_embedding = TwoTimeEmbedding(unet.time_embedding)
    return unet


class TwoTimeUNet(nn.Module):
    """A UNet2DConditionModel of two times and, where one is given, its text encoder, trained together.

        x_t, time -------> [ VPOnStraightPath ] ---> x_vp, its time ---> UNet ---> [ VPOnStraightPath ] ---> velocity
        time - earlier --------------------------------- second time ------+
        prompt --------> text encoder -----------------------------------+

    Args:
        inner: the UNet; it gets the second embedding, in place.
        text_encoder: None where conditions are embeddings.
        process: the process that the UNet was trained on, for a UNet of a variance-preserving schedule. None for a UNet
            that takes times of the straight path and predicts velocities itself.
        time_scale: the network gets time_scale * t; read only with `process`.
    """

    def __init__(
        self,
        inner: Any,
        text_encoder: nn.Module | None = None,
        process: VPOnStraightPath | None = None,
        time_scale: int = 1000,
    ) -> None:
        super().__init__()
        self.inner, self.text_encoder = add_second_time(inner), text_encoder
        self.process, self.time_scale = process, time_scale

    def encode(self, ids: Tensor) -> Tensor:
        """Embeddings (B, L, D) of token ids (B, L).

        Raises:
            ValueError: the network has no text encoder.
        """
        if self.text_encoder is None:
            raise ValueError("this network has no text encoder; give it embeddings")
        embeddings: Tensor = self.text_encoder(ids)[0]
        return embeddings

    def forward(self, x_t: Tensor, time: Tensor, earlier: Tensor, cond: Tensor) -> Tensor:
        """Predict the average velocity from a time to an earlier one.

        Args:
            x_t: noisy latents (B, C, H, W).
            time: (B,), time_scale * t.
            earlier: (B,), time_scale * s.
            cond: prompt embeddings (B, L, D), or token ids (B, L).
        """
        embeddings = cond if cond.is_floating_point() else self.encode(cond)
        interval = self.inner.time_proj(time - earlier).to(x_t.dtype)
        conditions = {"encoder_hidden_states": embeddings, "timestep_cond": interval}
        if self.process is None:
            value: Tensor = self.inner(x_t, time, **conditions).sample
            return value
        t = time.double() / self.time_scale
        x, index = self.process.inputs(x_t, t)
        return self.process.velocity(x_t, t, x, self.inner(x, index.to(time.dtype), **conditions).sample)


@torch.no_grad()
def fold_interval(unet: Any, interval: float) -> Any:
    """A stock UNet that equals one of two times at a fixed t - s. MLP_s is then a constant, which goes into a bias.

    Args:
        unet: the UNet of two times; it stays as it is.
        interval: t - s in the network's units, 1000 (t - s).

    Returns:
        A UNet2DConditionModel whose weights have the stock names.
    """
    stock = copy.deepcopy(unet)
    both, weight = stock.time_embedding, stock.time_embedding.linear_2.weight
    constant = both.interval(stock.time_proj(torch.tensor([interval], device=weight.device)).to(weight.dtype))[0]
    one = TimestepEmbedding(both.linear_1.in_features, both.linear_1.out_features, out_dim=both.linear_2.out_features)
    one.act, one.linear_1, one.linear_2 = both.act, both.linear_1, both.linear_2
    one.linear_2.bias.add_(constant)
    stock.time_embedding = one
    return stock


def load_two_time_unet(folder: Path) -> Any:
    """The UNet that `save_pretrained` wrote with its second embedding, as float32 and frozen, from safetensors alone.

    Raises:
        UserError: the files are missing or torn, or their weights do not fit.
    """
    from diffusers import UNet2DConditionModel

    from .self_conditioned import SelfConditionedUNet

    files, part = PipelineFolder(str(folder.parent), folder.parent, {}), folder.name
    config = files.read_json(f"{part}/config.json")
    classes: dict[str, Any] = {"UNet2DConditionModel": UNet2DConditionModel, "SelfConditionedUNet": SelfConditionedUNet}
    if (name := config.get("_class_name")) not in classes:
        raise UserError(f"there is no UNet of two times at {folder}: it is a {name}")
    weights = files.weights(part)
    with files.said_of(part), quiet():
        unet: Any = add_second_time(classes[name].from_config(config))
    try:
        unet.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise UserError(f"the UNet at {folder} is not one of two times: {first_line(error)}") from error
    return unet.requires_grad_(False).eval()
