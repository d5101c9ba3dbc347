"""Methods: the networks of each, their losses, and the order of their updates. Each method has one file.

The names below are imported when they are first used, so a list of the methods needs no torch.
"""

from typing import TYPE_CHECKING

from diffdistill.lazy import lazy_names

if TYPE_CHECKING:
    from diffdistill.methods.asd import ASD
    from diffdistill.methods.autoencoder import Autoencoder
    from diffdistill.methods.base import (
        Batch,
        Loss,
        Method,
        OptimizerSettings,
        ParameterGroup,
        Phase,
        Validation,
        unwrap,
    )
    from diffdistill.methods.boot import BOOT
    from diffdistill.methods.codec import ImageCodec
    from diffdistill.methods.codec_flow import CodecFlow
    from diffdistill.methods.codec_pretrained import PretrainedImageCodec
    from diffdistill.methods.consistency import Consistency
    from diffdistill.methods.dmd2 import DMD2
    from diffdistill.methods.latent_diffusion import LatentDiffusion
    from diffdistill.methods.mean_flow import MeanFlow
    from diffdistill.methods.multi_view import MultiViewDiffusion
    from diffdistill.methods.progressive import Progressive
    from diffdistill.methods.self_e import SelfE
    from diffdistill.methods.shortcut import Shortcut
    from diffdistill.methods.sid import SiD
    from diffdistill.methods.swiftbrush import SwiftBrush
    from diffdistill.methods.text_to_3d import TextTo3D

__all__ = [
    "ASD",
    "Autoencoder",
    "BOOT",
    "Batch",
    "CodecFlow",
    "Consistency",
    "DMD2",
    "ImageCodec",
    "LatentDiffusion",
    "Loss",
    "MeanFlow",
    "Method",
    "MultiViewDiffusion",
    "OptimizerSettings",
    "ParameterGroup",
    "Phase",
    "PretrainedImageCodec",
    "Progressive",
    "SelfE",
    "Shortcut",
    "SiD",
    "SwiftBrush",
    "TextTo3D",
    "Validation",
    "unwrap",
]

_MODULES = {
    "asd": ("ASD",),
    "autoencoder": ("Autoencoder",),
    "base": ("Batch", "Loss", "Method", "OptimizerSettings", "ParameterGroup", "Phase", "Validation", "unwrap"),
    "boot": ("BOOT",),
    "codec": ("ImageCodec",),
    "codec_flow": ("CodecFlow",),
    "codec_pretrained": ("PretrainedImageCodec",),
    "consistency": ("Consistency",),
    "dmd2": ("DMD2",),
    "latent_diffusion": ("LatentDiffusion",),
    "mean_flow": ("MeanFlow",),
    "multi_view": ("MultiViewDiffusion",),
    "progressive": ("Progressive",),
    "self_e": ("SelfE",),
    "shortcut": ("Shortcut",),
    "sid": ("SiD",),
    "swiftbrush": ("SwiftBrush",),
    "text_to_3d": ("TextTo3D",),
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
