"""Generators: prompts to fields, in one pass of a network.

The names below are imported when they are first used.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.text3d.generators.generator import Generator
    from diffdistill.text3d.generators.grid import GridField, field_on_grid, sdf_on_grid
    from diffdistill.text3d.generators.hyper import HyperGenerator, HyperSettings
    from diffdistill.text3d.generators.presets import generator_of, preset
    from diffdistill.text3d.generators.triplane_transformer import TriplaneSettings, TriplaneTransformer
    from diffdistill.text3d.generators.voxel_conv import VoxelConv, VoxelConvSettings

__all__ = [
    "Generator",
    "GridField",
    "HyperGenerator",
    "HyperSettings",
    "TriplaneSettings",
    "TriplaneTransformer",
    "VoxelConv",
    "VoxelConvSettings",
    "field_on_grid",
    "generator_of",
    "preset",
    "sdf_on_grid",
]

_MODULES = {
    "generator": ("Generator",),
    "grid": ("GridField", "field_on_grid", "sdf_on_grid"),
    "hyper": ("HyperGenerator", "HyperSettings"),
    "presets": ("generator_of", "preset"),
    "triplane_transformer": ("TriplaneSettings", "TriplaneTransformer"),
    "voxel_conv": ("VoxelConv", "VoxelConvSettings"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
