"""Recipes: which networks, which losses, who is updated when. One file a method."""

from .autoencoder import Autoencoder
from .base import Batch, Loss, Method, OptimizerSettings, Phase, unwrap
from .swiftbrush import SwiftBrush
from .text_to_image import TextToImage

__all__ = [
    "Autoencoder",
    "Batch",
    "Loss",
    "Method",
    "OptimizerSettings",
    "Phase",
    "SwiftBrush",
    "TextToImage",
    "unwrap",
]
