"""Tiny text-to-3D models with random weights, which know six words and make coloured blobs in a box of half side 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_generators import TINY
from torch import nn

from diffdistill.text3d.embedder import WordEmbedder
from diffdistill.text3d.generators.presets import PRESETS
from diffdistill.text3d.model import TextTo3DModel, save_model
from diffdistill.text3d.words import Vocabulary

HYPER, VOXELS = "tiny_hyper_dense", "tiny_voxel_conv"  # the second one takes noise
WORDS = Vocabulary(("red", "blue", "green", "mug", "tree", "house"), longest=2)


@contextmanager
def tiny_presets() -> Iterator[None]:
    """Within the block, the tiny generators have names, as those that ship do."""
    with pytest.MonkeyPatch.context() as patch:
        for name, settings in TINY.items():
            patch.setitem(PRESETS, f"tiny_{name}", lambda settings=settings: settings)
        yield


def small_model(generator: str = HYPER) -> TextTo3DModel:
    """A model whose objects differ in shape and colour from prompt to prompt."""
    torch.manual_seed(0)
    table = torch.randn(len(WORDS.words) + 1, 6)
    table[0] = 0
    made = TextTo3DModel(generator, WordEmbedder(WORDS, table), sharpness=30.0)
    for parameter in made.parameters():
        if not parameter.abs().max() > 0:
            nn.init.normal_(parameter, std=0.2)
    if generator == HYPER:
        out = made.generator.network.out
        for part in (out.weight.data, out.bias.data):
            part[-32:].view(8, 4, -1)[:, :1] *= 4
            part[-32:].view(8, 4, -1)[:, 1:] *= 200
    return made.requires_grad_(False).eval()


def save_small_model(folder: Path, generator: str = HYPER) -> str:
    """Save such a model; returns the folder."""
    save_model(small_model(generator), folder)
    return str(folder)
