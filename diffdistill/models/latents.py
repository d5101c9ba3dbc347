"""The latent space of an autoencoder: images to latents as the denoising network takes them, and back.

    images in [-1, 1] --encode--> (mode - shift) * scale, or (mode - mean) * scale / std --> latents --decode--> images

The scale, the shift and the statistics per channel are settings of the autoencoder. `encode` and `decode` keep the
graph, because a loss on rendered views or on decoded images needs it. `encode_bytes` and `images` work in batches and
keep none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError

from .pipeline_folder import Part, PipelineFolder

PIXELS = 1 << 20  # pixels of a batch; a wide autoencoder has 4 GB of activations for them
KL = Part(("AutoencoderKL",), "diffusers")


class LatentSpace:
    """An AutoencoderKL or an AutoencoderDC, with the scaling that its pipelines apply.

    Args:
        autoencoder: the diffusers model. An AutoencoderKL encodes to the mode of its posterior.

    Attributes:
        channels: number of channels of a latent, C.
        factor: number of pixels along the side of a latent's cell.

    Raises:
        UserError: the scaling factor is no number above 0, or the shift factor no number.
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder
        config = autoencoder.config
        widths = config.get("block_out_channels") or config.get("encoder_block_out_channels")
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(widths) - 1)
        self.scale = _number(config, "scaling_factor", 1.0)
        self.shift = _number(config, "shift_factor", 0.0)
        if not self.scale > 0:
            raise UserError(f"the autoencoder's scaling_factor is {self.scale}; it must be above 0, or null for 1")
        mean, std = config.get("latents_mean"), config.get("latents_std")
        # mean and standard deviation of each channel, (C, 1, 1), if the autoencoder has both
        self.statistics = None if mean is None or std is None else (_column(mean), _column(std))

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image of `height` x `width` pixels.

        Raises:
            ValueError: a side is not a multiple of `factor`.
        """
        if height % self.factor or width % self.factor:
            raise ValueError(f"the image has {height} x {width} pixels; both sides must be multiples of {self.factor}")
        return self.channels, height // self.factor, width // self.factor

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to latents (N, C, h, w) of the same dtype, with a graph."""
        found = self.autoencoder.encode(images.to(self.autoencoder.dtype))
        latents: Tensor = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        return self._scaled(latents.to(images.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) to images (N, 3, H, W), float32, about in [-1, 1] and not clipped, with a graph."""
        images: Tensor = self.autoencoder.decode(self._unscaled(latents).to(self.autoencoder.dtype)).sample
        return images.float()

    @torch.no_grad()
    def encode_bytes(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Images (N, 3, H, W), uint8, to latents (N, C, h, w), on the autoencoder's device.

        Args:
            images: the images, on any device.
            batch_size: the most images in a batch; batches of large images are smaller.
        """
        device, size = self.autoencoder.device, _at_once(batch_size, images.shape[-2] * images.shape[-1])
        return torch.cat([self.encode(c.to(device).float() / 127.5 - 1) for c in images.split(size)])

    @torch.no_grad()
    def images(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """Latents (N, C, h, w) to images (N, 3, H, W) in [0, 1].

        Args:
            latents: the latents, on the autoencoder's device.
            batch_size: the most images in a batch; batches of large images are smaller.
        """
        size = _at_once(batch_size, latents.shape[-2] * latents.shape[-1] * self.factor**2)
        return torch.cat([self.decode(z) for z in latents.split(size)]).clamp(-1, 1) / 2 + 0.5

    def _scaled(self, latents: Tensor) -> Tensor:
        if self.statistics is not None:
            mean, std = (each.to(latents) for each in self.statistics)
            return (latents - mean) * self.scale / std
        return (latents - self.shift if self.shift else latents) * self.scale

    def _unscaled(self, latents: Tensor) -> Tensor:
        if self.statistics is not None:
            mean, std = (each.to(latents) for each in self.statistics)
            return latents * std / self.scale + mean
        return latents / self.scale + self.shift if self.shift else latents / self.scale


def _at_once(most: int, pixels: int) -> int:
    """How many images of so many pixels an autoencoder takes at once: about a million pixels."""
    return max(1, min(most, PIXELS // pixels))


def load_autoencoder(source: str) -> Any:
    """The AutoencoderKL in a folder, as float32 and frozen.

    Raises:
        UserError: there is no folder, its network is of another class, or its files are torn or not safetensors.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"there is no autoencoder at {source}: expected a folder with an AutoencoderKL")
    return PipelineFolder(source, folder, {}, noun="autoencoder", kind="autoencoder").load(".", KL)


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    """A number of an autoencoder's settings; the default value if it is absent or null."""
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"the autoencoder's {name} is {value!r}; it must be a finite number, or null for {default:g}")
    return value


def _column(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
