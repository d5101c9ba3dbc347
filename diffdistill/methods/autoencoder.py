"""The small autoencoder of the embedded default, a stock diffusers AutoencoderKL.

    image (3, 64, 64) --encoder--> mean, log-variance (C, 8, 8) --sample--> z --decoder--> image

Notable:
- it is trained on whole images, because the normalisation layers see the whole image and learn other statistics on
  crops;
- convolutions start orthogonal and residual branches at zero. This near-linear codec carries hue after a few minutes;
  from the default initialisation that takes far longer;
- the loss is the absolute error of pixels and of their horizontal and vertical differences, because edges matter most
  in flat graphics. A small KL term pulls the posterior towards N(0, 1);
- the posterior starts almost free of noise. Otherwise the decoder would first learn to ignore the encoder;
- a decoder that is trained in this way is sensitive: a small error of a generator becomes a large error of the image.
  `latent_noise` trains the decoder on perturbed latents. With `train_encoder` false the encoder stays as it is, so
  generators of its latents stay valid;
- at export, the mean and the scale of the latents are folded into the 1x1 convolutions on both sides of the latent. The
  latents then have mean 0 in each channel and variance 1 over all channels, and `scaling_factor` is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.data.captioned import CaptionedData, load_captioned
from diffdistill.distill import SampleRandom
from diffdistill.errors import UserError
from diffdistill.models.latents import load_autoencoder
from diffdistill.models.narrow_autoencoder import narrow_autoencoder

from .base import Batch, Loss, Method, OptimizerSettings, Phase, Validation, check_shares, unwrap
from .content import digest, of_network


def edge_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of the horizontal and vertical differences of neighbouring pixels.

    Args:
        x: images (B, C, H, W).
        y: images of the same shape.
    """
    d = x - y
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


class ReconstructionNetwork(nn.Module):
    """Encoder, posterior sample and decoder as one forward pass, so that a data-parallel wrapper sees one call.

    Args:
        vae: the AutoencoderKL.
        train_encoder: whether the encoder is trained; otherwise it is frozen here.
    """

    def __init__(self, vae: nn.Module, train_encoder: bool = True) -> None:
        super().__init__()
        self.vae, self.train_encoder = vae, train_encoder
        if not train_encoder:
            for part in (vae.encoder, vae.quant_conv):
                part.requires_grad_(False)  # type: ignore[operator]

    def forward(self, x: Tensor, noise: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Encode, sample and decode.

        Args:
            x: images (B, 3, H, W) in [-1, 1].
            noise: (B, C, h, w), of unit variance.
            std: (B,), standard deviation of the noise on latents beyond that of the posterior.

        Returns:
            The reconstruction, and the KL divergence per latent value.
        """
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            posterior = self.vae.encode(x).latent_dist  # type: ignore[operator]
        z = posterior.mean + (posterior.var + std.square()[:, None, None, None]).sqrt() * noise
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1.0 - posterior.logvar.float())
        return self.vae.decode(z).sample, kl.mean()  # type: ignore[operator]


class Autoencoder(Method):
    """Train an AutoencoderKL on images.

    Args:
        data: images; captions are not needed.
        latent_channels: number of channels of a latent.
        block_out_channels: widths, at full resolution first; each entry after the first halves the resolution.
        crop: side of the training crops in pixels; null for whole images.
        norm_groups: number of groups of the normalisation layers; 1 preserves the colours of flat images best.
        optimizer: the optimiser of the autoencoder.
        edge_weight: weight of the error of the differences of neighbouring pixels.
        kl_weight: weight of the mean KL divergence per latent value.
        permute_colours: share of samples whose colour channels are permuted, so that colours are not tied to objects.
        latent_noise: largest standard deviation of the noise on latents before decoding. Each sample's is drawn
            uniformly from 0 to this.
        train_encoder: false to train the decoder alone; the latents and their scale then stay as they are.
        init_from: folder of an AutoencoderKL to start from. If `latent_channels` is less than it has, the leading
            principal components of its latents are kept.

    Raises:
        UserError: a setting is out of its range, or does not fit the images or the autoencoder to start from.
    """

    averaged = "autoencoder"

    def __init__(
        self,
        data: CaptionedData = CaptionedData(),
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (24, 48, 96, 128),
        crop: int | None = None,
        norm_groups: int = 1,
        optimizer: OptimizerSettings = OptimizerSettings(6e-4, (0.9, 0.99)),
        edge_weight: float = 1.0,
        kl_weight: float = 1e-4,
        permute_colours: float = 0.2,
        latent_noise: float = 0.0,
        train_encoder: bool = True,
        init_from: str | None = None,
    ) -> None:
        from diffusers import AutoencoderKL

        check_shares(permute_colours=permute_colours)
        if min(latent_noise, edge_weight, kl_weight) < 0:
            raise UserError(
                f"latent_noise is {latent_noise}, edge_weight {edge_weight} and kl_weight {kl_weight}; none of them "
                "may be below 0"
            )
        self.images = load_captioned(data, captioned=False).images
        self.content = {"data.source": digest(self.images)}
        side = min(self.images.shape[-2:])
        self.crop, self.edge_weight, self.kl_weight = side if crop is None else crop, edge_weight, kl_weight
        self.permute_colours, self.latent_noise, self.train_encoder = permute_colours, latent_noise, train_encoder
        vae: Any
        if init_from is not None:
            vae = load_autoencoder(init_from).requires_grad_(True)
            self.content["init_from"] = of_network(vae)
            if latent_channels != vae.config.latent_channels:
                if not train_encoder:
                    found = vae.config.latent_channels
                    raise UserError(
                        f"latent_channels is {latent_channels}; with train_encoder false it must stay {found}"
                    )
                vae = narrow_autoencoder(vae, latent_channels, self.images)
        else:
            if not train_encoder:
                raise UserError("train_encoder is false, so init_from must name the autoencoder whose encoder is kept")
            levels = len(block_out_channels)
            vae = AutoencoderKL(
                latent_channels=latent_channels,
                block_out_channels=tuple(block_out_channels),
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                layers_per_block=1,
                norm_num_groups=norm_groups,
                mid_block_add_attention=False,
                sample_size=self.images.shape[-1],
                scaling_factor=1.0,
            )
            start_near_linear(vae)
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._check_crop(crop, side)
        self.latent_channels = vae.config.latent_channels
        self.networks = {"autoencoder": ReconstructionNetwork(vae, train_encoder).to(memory_format=torch.channels_last)}
        self.optimizers = {"autoencoder": optimizer}

    def _check_crop(self, crop: int | None, side: int) -> None:
        """Raise UserError for a crop, or for whole images, that the autoencoder cannot halve so often."""
        factor, below = self.factor, side // self.factor * self.factor
        if factor <= self.crop <= side and self.crop % factor == 0:
            return
        if crop is None or not below:
            height, width = self.images.shape[-2:]
            sizes = f"{below} or {below + factor}" if below else str(factor)
            raise UserError(
                f"the images have {width} by {height} pixels, and sides must be multiples of {factor}; set data.size "
                f"to {sizes}" + (f", or crop to {below}" if below else "")
            )
        raise UserError(f"crop is {crop}; it must be a multiple of {factor}, at most {below}")

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, records: Sequence[int], random: SampleRandom) -> Batch:
        span = min(self.images.shape[-2:]) - self.crop + 1
        tops, lefts = random.integers("top", span).tolist(), random.integers("left", span).tolist()
        flips = random.bernoulli("flip", 0.5).tolist()
        permuted = random.bernoulli("permute", self.permute_colours).tolist()
        rotations = random.integers("rotation", 3).tolist()
        crops = []
        for i, record in enumerate(records):
            x = self.images[record, :, tops[i] : tops[i] + self.crop, lefts[i] : lefts[i] + self.crop]
            x = x.flip(-1) if flips[i] else x
            crops.append(x.roll(rotations[i], 0) if permuted[i] else x)
        images = torch.stack(crops).to(self.device, torch.float32) / 127.5 - 1.0
        return {"images": images.contiguous(memory_format=torch.channels_last)}

    def phases(self, step: int) -> list[Phase]:
        return [Phase("autoencoder", "autoencoder", self._loss)]

    def _loss(self, batch: Batch, random: SampleRandom, carry: dict[str, Any]) -> Loss:
        x = batch["images"]
        side = x.shape[-1] // self.factor
        noise = random.normal("posterior", (self.latent_channels, side, side))
        y, kl = self.networks["autoencoder"](x, noise, self.latent_noise * random.uniform("latent_noise").float())
        y = y.float()
        pixel, edge = (y - x).abs().mean(), edge_error(y, x)
        loss = pixel + self.edge_weight * edge + self.kl_weight * kl
        psnr = -10.0 * ((y - x).detach() / 2).square().mean().log10()
        return loss, {"pixel": pixel.detach(), "edge": edge.detach(), "kl": kl.detach(), "psnr_db": psnr}

    def validate(self) -> Validation:
        """16 images beside their reconstructions, which are cut to multiples of the factor."""
        height, width = (side // self.factor * self.factor for side in self.images.shape[-2:])
        chosen = self.images[:: max(1, len(self.images) // 16), :, :height, :width][:16]
        x = chosen.to(self.device, torch.float32) / 127.5 - 1.0
        vae = unwrap(self.networks["autoencoder"]).vae
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float()
        return Validation(torch.stack([x, y], 1).flatten(0, 1).clamp(-1, 1) / 2 + 0.5)

    def export(self, folder: Path) -> None:
        vae = unwrap(self.networks["autoencoder"]).vae
        if self.train_encoder:
            fold_latent_statistics(vae, self.images)
            vae.register_to_config(scaling_factor=1.0)
        vae.save_pretrained(folder)


@torch.no_grad()
def start_near_linear(vae: Any) -> None:
    """Orthogonal convolutions on the main path, residual branches of zero, and a posterior almost without noise."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and name.endswith("conv2"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Conv2d) and not name.endswith("conv1"):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] *= 0.1
    vae.quant_conv.bias[channels:] = -6.0


@torch.no_grad()
def fold_latent_statistics(vae: Any, images: Tensor) -> None:
    """Change the 1x1 convolutions around the latent so that latents of `images` (uint8) have mean 0 and variance 1."""
    device = next(vae.parameters()).device
    latents = torch.cat(
        [vae.encode(chunk.to(device).float() / 127.5 - 1.0).latent_dist.mode() for chunk in images.split(64)]
    ).double()
    mean = latents.mean((0, 2, 3))
    std = (latents - mean[:, None, None]).square().mean().sqrt()
    channels = len(mean)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    # the decoder first: W (std z' + mean) + b
    decode.bias += (decode.weight[:, :, 0, 0].double() @ mean).to(decode.bias.dtype)
    decode.weight *= std.to(decode.weight.dtype)
    encode.bias[:channels] = ((encode.bias[:channels].double() - mean) / std).to(encode.bias.dtype)
    encode.weight[:channels] /= std.to(encode.weight.dtype)
    encode.bias[channels:] -= 2.0 * std.log().to(encode.bias.dtype)  # log-variance of the scaled latent
