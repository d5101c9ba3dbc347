"""Generators by name, and of their settings."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from diffdistill.errors import UserError

from .hyper import HyperGenerator, HyperSettings
from .triplane_transformer import TriplaneSettings, TriplaneTransformer
from .voxel_conv import VoxelConv, VoxelConvSettings

GeneratorSettings = HyperSettings | TriplaneSettings | VoxelConvSettings

PRESETS: dict[str, Callable[[], GeneratorSettings]] = {
    "hyper": HyperSettings,
    "hyper_small": HyperSettings.small,
    "triplane": TriplaneSettings,
    "triplane_small": TriplaneSettings.small,
    "voxel_conv": VoxelConvSettings,
    "voxel_conv_wide": lambda: VoxelConvSettings.paper(width=2),
    "voxel_conv_small": VoxelConvSettings.small,
}


def preset(name: str) -> GeneratorSettings:
    """The settings of a size that has a name.

    Args:
        name: a key of `PRESETS`. Without a suffix: the sizes of ScaleDreamer (arXiv 2407.02040).

    Raises:
        UserError: there is no such name.

    >>> preset("hyper_small").radius
    1.0
    """
    if name not in PRESETS:
        close = get_close_matches(name, PRESETS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"generator is {name!r}; it must be one of {', '.join(PRESETS)}{hint}")
    return PRESETS[name]()


def generator_of(settings: GeneratorSettings) -> HyperGenerator | TriplaneTransformer | VoxelConv:
    """A new generator of these settings, with random weights of torch's global generator.

    Raises:
        UserError: the settings are of no generator.
    """
    if isinstance(settings, HyperSettings):
        return HyperGenerator(settings)
    if isinstance(settings, TriplaneSettings):
        return TriplaneTransformer(settings)
    if isinstance(settings, VoxelConvSettings):
        return VoxelConv(settings)
    raise UserError(
        f"the generator's settings are a {type(settings).__name__}; they must be HyperSettings, TriplaneSettings or "
        "VoxelConvSettings"
    )
