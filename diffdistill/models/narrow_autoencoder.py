"""An AutoencoderKL with fewer latent channels, cut out of a wider one along its latents' principal components."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError

LOG_VARIANCE = -6.0  # of the new posterior, at first


@torch.no_grad()
def narrow_autoencoder(vae: Any, channels: int, images: Tensor) -> Any:
    """Keep the `channels` leading components of the latents of `images` (uint8, (N, 3, H, W)), read from each pixel.

    The encoder's last convolution and the decoder's first one take the two rotations in, so nothing else changes;
    the result wants some training. The decoder's image is that of the projected latent, but for the border, where
    zero padding meets another bias.

    Raises:
        UserError: not fewer channels than there are.
    """
    from diffusers import AutoencoderKL

    wide = vae.config.latent_channels
    if not 0 < channels < wide:
        raise UserError(f"latent_channels is {channels}; init_from has {wide}, of which fewer can be kept")
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
