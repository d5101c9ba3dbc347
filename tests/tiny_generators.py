"""Tiny text-to-3D generators with random parameters, and what they need."""

import torch
from torch import Tensor, nn

from diffdistill.text3d.fields.dense_levels import DenseLevelSettings
from diffdistill.text3d.fields.hash_grid import HashGridSettings
from diffdistill.text3d.fields.heads import HeadSettings
from diffdistill.text3d.generators.hyper import HyperSettings
from diffdistill.text3d.generators.presets import GeneratorSettings, generator_of
from diffdistill.text3d.generators.triplane_transformer import TriplaneSettings
from diffdistill.text3d.generators.voxel_conv import VoxelConvSettings

HASH = HashGridSettings(levels=3, log2_table=8, base=4, growth=2.0, start=0.3)
TINY: dict[str, GeneratorSettings] = {
    "hyper": HyperSettings(HASH, HeadSettings((8,)), prompt_dim=6, bottleneck=8),
    "hyper_dense": HyperSettings(DenseLevelSettings((2, 4), start=0.3), HeadSettings((8,), joint=True), 6, 8),
    "triplane": TriplaneSettings(16, 2, 4, 3, 2, 4, token_dim=5, head=HeadSettings((8, 8)), radius=1.0),
    "voxel_conv": VoxelConvSettings((8, 6, 4), 3, 1, 8, 8, 6, noise_dim=4, head=HeadSettings((8,))),
    "voxel_conv_plain": VoxelConvSettings((8, 6), 3, 2, 8, 8, 6, noise_dim=0, layer_noise=False),
}


def tiny(name: str, seed: int = 0) -> nn.Module:
    """A tiny generator with random parameters, whose heads say something."""
    torch.manual_seed(seed)
    made = generator_of(TINY[name])
    for parameter in made.parameters():
        if not parameter.abs().max() > 0:
            nn.init.normal_(parameter, std=0.2)
    for name, parameter in made.named_parameters():
        if name.startswith("read") or "network.out" in name:
            parameter.data *= 4
    return made


def inputs(count: int = 3, seed: int = 1) -> dict[str, Tensor]:
    """What any tiny generator needs."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 4, dtype=torch.bool)
    mask[0, 2:] = False
    return {
        "pooled": torch.randn(count, 6, generator=generator),
        "tokens": torch.randn(count, 4, 5, generator=generator),
        "mask": mask,
        "noise": torch.randn(count, 4, generator=generator),
    }


def points(count: int, number: int = 50, seed: int = 2, radius: float = 1.0) -> Tensor:
    """Points in the box."""
    return (torch.rand(count, number, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * radius
