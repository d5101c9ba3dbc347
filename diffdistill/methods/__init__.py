"""Recipes: which networks, which losses, who is updated when. One file a method."""

from .asd import ASD
from .autoencoder import Autoencoder
from .base import Batch, Loss, Method, OptimizerSettings, ParameterGroup, Phase, Validation, unwrap
from .boot import BOOT
from .consistency import Consistency
from .dmd2 import DMD2
from .latent_diffusion import LatentDiffusion
from .mean_flow import MeanFlow
from .progressive import Progressive
from .self_e import SelfE
from .shortcut import Shortcut
from .sid import SiD
from .swiftbrush import SwiftBrush

__all__ = [
    "ASD",
    "BOOT",
    "DMD2",
    "Autoencoder",
    "Batch",
    "Consistency",
    "LatentDiffusion",
    "Loss",
    "MeanFlow",
    "Method",
    "OptimizerSettings",
    "ParameterGroup",
    "Phase",
    "Progressive",
    "SelfE",
    "Shortcut",
    "SiD",
    "SwiftBrush",
    "Validation",
    "unwrap",
]
