"""diffusers networks behind the one signature that `Denoiser` calls: network(x_t, time, cond)."""

from __future__ import annotations

from torch import Tensor, nn


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
        embeddings = cond if cond.is_floating_point() else self.encode(cond)
        return self.unet(x_t, time, encoder_hidden_states=embeddings).sample


class UNet(nn.Module):
    """A UNet2DConditionModel alone; cond: prompt embeddings (B, L, D)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        return self.unet(x_t, time, encoder_hidden_states=cond).sample
