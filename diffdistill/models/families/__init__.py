"""Families of diffusers pipelines that can be a teacher, one file each. A new one is a file and a line of the table."""

from __future__ import annotations

from importlib import import_module

from diffdistill.errors import UserError

from .base import Family

FAMILIES = {  # `_class_name` of model_index.json: module and class
    "StableDiffusionPipeline": ("stable_diffusion", "StableDiffusion"),
    "StableDiffusionXLPipeline": ("stable_diffusion_xl", "StableDiffusionXL"),
    "SanaPipeline": ("sana", "Sana"),
}
SUPPORTED = "Stable Diffusion 1.x, 2.x, SDXL and SANA are supported"


def family_of(class_name: object, source: str) -> Family:
    """The family of a pipeline class.

    Args:
        class_name: `_class_name` of model_index.json.
        source: what an error calls the pipeline.

    Raises:
        UserError: the class is not supported.
    """
    if class_name not in FAMILIES:
        raise UserError(f"teacher {source} is a {class_name}; {SUPPORTED}")
    module, name = FAMILIES[str(class_name)]
    family: Family = getattr(import_module(f"{__name__}.{module}"), name)()
    return family
