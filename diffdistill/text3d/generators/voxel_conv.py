"""3DConv-Net: style-modulated 3D convolutions make a box of features.

    pooled prompt, noise --fully connected layers--> w
    learnt 4^3 --layer(w)--+--> [enlarging layer(w), layer(w)] --+--> ... --> 128^3
                to features(w)                        to features(w)             `--> features, the sum of all
                           `--------- enlarged and added --------`

Source: the 3D convolutional generator of ScaleDreamer (arXiv 2407.02040), after StyleGAN2 (arXiv 1912.04958).

Notable:
- an enlarging layer adds a learnt map of its resolution, up to 64^3. Half of the paper's parameters are in these maps;
- noise for each layer is given by the caller or zero, so that a generator is a function of its inputs (`layer_noise`).
  Training gives it, and generation does not;
- prompts and noise are scaled to an rms of 1 first, as StyleGAN2 does with its noise. A zero embedding stays zero;
- the small size has no noise. Its features are made at 16^3, for eight sub-voxels of each voxel (32^3), since a level
  of convolutions at 32^3 would multiply the cost of a step on a CPU by more than two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError
from diffdistill.text3d.fields.feature_field import FeatureField
from diffdistill.text3d.fields.heads import HeadSettings, SharedHeads
from diffdistill.text3d.fields.precision import at_least_float32, full_precision
from diffdistill.text3d.fields.ranges import check_whole
from diffdistill.text3d.fields.voxels import Voxels

from .generator import check_inputs, unit_rms
from .modulated_conv import CLAMP, EqualLinear, Layer, ModulatedConv, activate, double

FIRST_SIDE = 4


@dataclass(frozen=True)
class VoxelConvSettings:
    """The sizes of a 3DConv-Net; the defaults are the paper's.

    Args:
        channels: of activations at 4^3, 8^3, 16^3 and so on.
        features: channels of the box of features.
        shuffle: sub-voxels along a side of a voxel of the finest resolution.
        maps_up_to: the finest side with a learnt map.
        style_dim: width of w.
        prompt_dim: width of the pooled embedding.
        noise_dim: width of the noise; 0 for none.
        layer_noise: whether layers can be given noise.
        head: the networks that read the features.
        radius: half the side of the box.

    Raises:
        UserError: a setting is out of its range.
    """

    channels: tuple[int, ...] = (512, 512, 512, 256, 128, 64)
    features: int = 32
    shuffle: int = 1
    maps_up_to: int = 64
    style_dim: int = 256
    prompt_dim: int = 1024
    noise_dim: int = 64
    layer_noise: bool = True
    head: HeadSettings = HeadSettings(hidden=(64,), sphere=0.8)
    radius: float = 2.0

    def __post_init__(self) -> None:
        check_whole("the number of channels", len(self.channels), 1, 8)
        for width in self.channels:
            check_whole("channels", width, 1, 1 << 13)
        for name, least, most in (("features", 1, 1024), ("shuffle", 1, 8), ("maps_up_to", 0, 1024)):
            check_whole(name, getattr(self, name), least, most)
        for name, least in (("style_dim", 1), ("prompt_dim", 1), ("noise_dim", 0)):
            check_whole(name, getattr(self, name), least, 1 << 16)
        if self.layer_noise not in (True, False):
            raise UserError(f"layer_noise is {self.layer_noise!r}; it must be true or false")
        self.head.check_inside(self.radius)

    @property
    def sides(self) -> tuple[int, ...]:
        """Voxels along a side of each resolution.

        >>> VoxelConvSettings().sides
        (4, 8, 16, 32, 64, 128)
        """
        return tuple(FIRST_SIDE << level for level in range(len(self.channels)))

    @classmethod
    def paper(cls, width: int = 1) -> VoxelConvSettings:
        """88.7 million parameters; with a width of 2, 144.8 million, as the paper has for 100,000 prompts."""
        return cls(channels=(512, 512, 512, 256 * width, 128 * width, 64 * width))

    @classmethod
    def small(cls, prompt_dim: int = 128) -> VoxelConvSettings:
        """1.27 million parameters, in a box of half-size 1: convolutions up to 16^3, features at 32^3."""
        return cls(
            channels=(112, 80, 48),
            features=8,
            shuffle=2,
            style_dim=112,
            prompt_dim=prompt_dim,
            noise_dim=0,
            layer_noise=False,
            head=HeadSettings(hidden=(32,), joint=True, sphere=0.5),
            radius=1.0,
        )


class Mapping(nn.Module):
    """Prompts and noise to w: two layers of the noise, and one of both. Without noise, one layer of the prompt."""

    def __init__(self, prompt: int, noise: int, style: int) -> None:
        super().__init__()
        self.of_noise = nn.ModuleList([EqualLinear(noise, style), EqualLinear(style, style)] if noise else [])
        self.of_both = EqualLinear(prompt + (style if noise else 0), style)

    def forward(self, pooled: Tensor, noise: Tensor | None) -> Tensor:
        """Pooled embeddings (P, prompt) and noise (P, noise) to w (P, style), in float32 at least."""
        with full_precision(pooled):
            x = unit_rms(pooled)
            if len(self.of_noise):
                assert noise is not None
                z = unit_rms(noise)
                for layer in self.of_noise:
                    z = activate(layer(z))
                x = torch.cat([z, x], 1)
            return activate(self.of_both(x))


class ToFeatures(nn.Module):
    """A modulated 1 x 1 x 1 convolution without demodulation, and a bias."""

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.convolution = ModulatedConv(inputs, outputs, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Activations (P, inputs, n, n, n) and styles (P, style) to (P, outputs, n, n, n), in float32 at least."""
        made = at_least_float32(self.convolution(x, w)) + self.bias[:, None, None, None]
        return made.clamp(-CLAMP, CLAMP)


class VoxelConv(nn.Module):
    """3DConv-Net; implements `Generator`. It reads the pooled embedding, and noise unless `noise_dim` is 0.

    Args:
        settings: the sizes.
    """

    needs_tokens, token_dim = False, 0

    def __init__(self, settings: VoxelConvSettings) -> None:
        super().__init__()
        self.settings, self.radius = settings, settings.radius
        self.prompt_dim, self.noise_dim, style = settings.prompt_dim, settings.noise_dim, settings.style_dim
        channels, noise = settings.channels, settings.layer_noise
        self.mapping = Mapping(settings.prompt_dim, settings.noise_dim, style)
        self.start = nn.Parameter(torch.randn(channels[0], *[FIRST_SIDE] * 3))
        self.layers = nn.ModuleList([Layer(channels[0], channels[0], style, noise=noise)])
        for before, width, side in zip(channels, channels[1:], settings.sides[1:], strict=False):
            map_side = side if side <= settings.maps_up_to else 0
            self.layers.append(Layer(before, width, style, enlarge=True, map_side=map_side, noise=noise))
            self.layers.append(Layer(width, width, style, noise=noise))
        outputs = settings.features * settings.shuffle**3
        self.to_features = nn.ModuleList([ToFeatures(width, outputs, style) for width in channels])
        self.read = SharedHeads(settings.head, settings.features)

    @property
    def layer_shapes(self) -> tuple[tuple[int, ...], ...]:
        """(1, n, n, n) of the noise of each layer; none without `layer_noise` in the settings."""
        first, *others = self.settings.sides
        sides = [first, *(side for side in others for _ in range(2))] if self.settings.layer_noise else []
        return tuple((1, side, side, side) for side in sides)

    def layer_noise(self, count: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Standard normal noise for each layer, (count, 1, n, n, n), on the generator's device or the parameters'."""
        device = self.start.device if generator is None else generator.device
        return [
            torch.randn(count, *shape, generator=generator, device=device).to(self.start.device)
            for shape in self.layer_shapes
        ]

    def voxels(self, w: Tensor, layer_noise: Sequence[Tensor] | None = None) -> Tensor:
        """The boxes of features of styles.

        Args:
            w: (P, style_dim).
            layer_noise: for each layer, (P or 1, 1, n, n, n); None for zero.

        Returns:
            (P, features, n, n, n), whose last axes are z, y, x.

        Raises:
            UserError: there is noise for another number of layers, or the settings have none.
        """
        noises: Sequence[Tensor | None] = layer_noise or [None] * len(self.layers)
        if layer_noise is not None and (not self.settings.layer_noise or len(layer_noise) != len(self.layers)):
            most = len(self.layers) if self.settings.layer_noise else 0
            raise UserError(f"layer_noise is for {len(layer_noise)} layers; {most} layers take noise")
        x = self.start.expand(len(w), -1, -1, -1, -1)
        made: Tensor | None = None
        for i, (layer, noise) in enumerate(zip(self.layers, noises, strict=True)):
            x = layer(x, w, noise)
            if i % 2 == 0:  # the last layer of a resolution
                found = self.to_features[i // 2](x, w)
                made = found if made is None else double(made) + found
        assert made is not None
        return sub_voxels(made, self.settings.shuffle)

    def forward(
        self,
        pooled: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        layer_noise: Sequence[Tensor] | None = None,
    ) -> FeatureField:
        """Objects of prompts (P, D) and noise (P, Z); see `Generator`. `tokens` and `mask` are ignored.

        `layer_noise` is noise for each layer, as the method of that name makes it, or None for zero.
        """
        check_inputs(self, pooled, tokens, mask, noise)
        boxes = self.voxels(self.mapping(pooled, noise), layer_noise)
        return FeatureField(Voxels(boxes), self.read(), len(pooled), self.radius, pooled.device)


def sub_voxels(x: Tensor, factor: int) -> Tensor:
    """(P, C f^3, n, n, n) to (P, C, f n, f n, f n), as `pixel_shuffle` does with two axes.

    >>> sub_voxels(torch.arange(8.0).view(1, 8, 1, 1, 1), 2).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    if factor == 1:
        return x
    parts = x.unflatten(1, (-1, factor, factor, factor))  # (P, C, f, f, f, d, h, w)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
