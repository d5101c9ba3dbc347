"""An AutoencoderKL with fewer latent channels, made from a wider one by the principal components of its latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError

LOG_VARIANCE = -6.0  # of the new posterior, at the start


@torch.no_grad()
def narrow_autoencoder(vae: Any, channels: int, images: Tensor) -> Any:
    """Keep the leading principal components of an autoencoder's latents.

    The two rotations go into the encoder's last convolution and into the decoder's first one, so nothing else changes.
    The result needs some training. The decoded image is that of the projected latent, except at the border, where zero
    padding meets another bias.

    Args:
        vae: the AutoencoderKL.
        channels: number of components that are kept.
        images: uint8 Tensor of shape (N, 3, H, W); the components are those of all pixels of their latents.

    Raises:
        UserError: `channels` is not smaller than the number of latent channels.
    """
    from diffusers import AutoencoderKL

    wide = vae.config.latent_channels
    if not 0 < channels < wide:
        raise UserError(f"latent_channels is {channels}; init_from has {wide}, so it must be 1 to {wide - 1}")
    latents = torch.cat([vae.encode(x.float() / 127.5 - 1.0).latent_dist.mode() for x in images.split(64)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    basis = torch.linalg.eigh(torch.cov(flat)).eigenvectors.flip(1)[:, :channels]  # (wide, channels)

    narrow = AutoencoderKL.from_config({**vae.config, "latent_channels": channels, "scaling_factor": 1.0})
    state: dict[str, Tensor] = {k: v.clone() for k, v in vae.state_dict().items()}
    # encoder: basis^T (quant_conv(conv_out(h)) - mean)
    quant, quant_bias = state["quant_conv.weight"][:wide, :, 0, 0].double(), state["quant_conv.bias"][:wide].double()
    weight, bias = state["encoder.conv_out.weight"].double(), state["encoder.conv_out.bias"].double()
    to_mean = basis.T @ quant
    rows = torch.einsum("co,oihw->cihw", to_mean, weight)
    state["encoder.conv_out.weight"] = torch.cat([rows, torch.zeros_like(rows)])
    offset = to_mean @ bias + basis.T @ (quant_bias - mean)
    state["encoder.conv_out.bias"] = torch.cat([offset, torch.full_like(offset, LOG_VARIANCE)])
    state["quant_conv.weight"] = torch.eye(2 * channels)[:, :, None, None]
    state["quant_conv.bias"] = torch.zeros(2 * channels)
    # decoder: conv_in(post_quant_conv(basis z + mean))
    post, post_bias = state["post_quant_conv.weight"][:, :, 0, 0].double(), state["post_quant_conv.bias"].double()
    weight = state["decoder.conv_in.weight"].double()
    state["decoder.conv_in.weight"] = torch.einsum("oihw,ic->ochw", weight, post @ basis)
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"].double() + weight.sum((2, 3)) @ (
        post @ mean + post_bias
    )
    state["post_quant_conv.weight"] = torch.eye(channels)[:, :, None, None]
    state["post_quant_conv.bias"] = torch.zeros(channels)
    narrow.load_state_dict({k: v.float() for k, v in state.items()})
    return narrow
