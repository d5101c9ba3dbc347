"""diffusers networks behind the one signature that `Denoiser` calls: network(x_t, time, cond)."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


def call_unet(unet: Any, x_t: Tensor, time: Tensor, embeddings: Tensor, **more: Tensor) -> Tensor:
    """A UNet2DConditionModel's answer, called as the stock pipeline calls it at guidance 1.

    A UNet with `time_cond_proj_dim` (a latent consistency model's, arXiv 2310.04378) is given the embedding of the
    guidance scale, w = 0. Guidance here is classifier-free guidance for such a network too: e_0 + s (e_c - e_0), both
    passes at w = 0. The stock pipeline embeds w = s - 1 in a single pass instead, which is what `generate` does.

    Args:
        x_t: latents (B, C, h, w).
        time: (B,), as the network is told it.
        embeddings: of prompts, (B, L, D).
        more: `class_labels`, say.
    """
    dim = getattr(getattr(unet, "config", None), "time_cond_proj_dim", None)  # a bare module has no settings
    if dim is not None:
        more["timestep_cond"] = unguided(dim).to(x_t).expand(len(x_t), -1)
    value: Tensor = unet(x_t, time, encoder_hidden_states=embeddings, **more).sample
    return value


@lru_cache
def unguided(dim: int) -> Tensor:
    """The stock pipeline's embedding of guidance scale 1 (w = 0), of shape (1, dim)."""
    from diffusers import StableDiffusionPipeline

    with torch.inference_mode(False), torch.no_grad():
        make: Any = StableDiffusionPipeline.get_guidance_scale_embedding  # reads nothing of the pipeline
        value: Tensor = make(None, torch.zeros(1), embedding_dim=dim)
    return value


class TextConditionedUNet(nn.Module):
    """A UNet2DConditionModel and its text encoder, trained together.

    forward: x_t (B, C, H, W), time (B,), token ids (B, L) long, or embeddings (B, L, D) from `encode`.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def encode(self, ids: Tensor) -> Tensor:
        return self.text_encoder(ids)[0]

    def forward(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        return call_unet(self.unet, x_t, time, cond if cond.is_floating_point() else self.encode(cond))


class UNet(nn.Module):
    """A UNet2DConditionModel alone; cond: prompt embeddings (B, L, D)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        return call_unet(self.unet, x_t, time, cond)


def full_copy(network: UNet) -> UNet:
    """An independent, trainable copy."""
    return copy.deepcopy(network).requires_grad_(True).train()
