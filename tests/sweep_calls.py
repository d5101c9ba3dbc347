"""What the tests of `eval sweep` share: a tiny emoji set, towers one can follow, and the command's options."""

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffdistill.data.emoji import STYLES
from diffdistill.evaluation.features.mobilenet import _packaged_weights

weights = _packaged_weights()
needs_mobilenet = pytest.mark.skipif(
    weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing"
)

CONCEPTS, HELD_OUT, PICTURES = 14, 2, 8
SWEEP = ("sweep", "--reference", "emoji", "--pictures", str(PICTURES), "--variety_captions", "0", "--out", "out")
SMALL = (*SWEEP, "--models", "model", "--students", "fast=model", "--steps", "1", "2", "--guidance", "3", "--seeds")


class Stub:
    """Towers one can follow: mean colour, and letters of the caption."""

    name, dim, kind, key = "stub", 3, "align", "(stub)"

    def __init__(self, device: Any = "cpu") -> None:
        self.protocol = {"extractor": "stub", "quantisation": "uint8-round"}

    def __call__(self, images: Tensor, batch_size: int = 64, progress: bool = False) -> Tensor:
        return torch.nn.functional.normalize(images.float().mean((2, 3)) + 1, dim=1)

    def text(self, captions: list[str]) -> Tensor:
        rows = torch.tensor([[float(c.count(letter)) for letter in "adx"] for c in captions])
        return torch.nn.functional.normalize(rows + 0.1, dim=1)


def align_module() -> types.ModuleType:
    module = types.ModuleType("diffdistill.evaluation.agreement.align")
    module.AlignFeatures = Stub  # type: ignore[attr-defined]
    return module


def save_tiny_emoji(folder: Path) -> None:
    """Blobs of colour, of which the last two concepts are held out."""
    folder.mkdir()
    names = [f"thing {chr(97 + i)}" for i in range(CONCEPTS)]
    (folder / "concepts.tsv").write_text("".join(f"{i:x}\t{name}\n" for i, name in enumerate(names)))
    (folder / "heldout.txt").write_text("\n".join(names[-HELD_OUT:]))
    for seed, style in enumerate(STYLES):
        small = np.random.default_rng(seed).integers(0, 256, (4, 4 * CONCEPTS, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64 * CONCEPTS, 64)).save(folder / f"{style}.webp", lossless=True)


def record(out: str = "out", timed: bool = True) -> dict:
    found = json.loads(Path(out, "sweep.json").read_text())
    if not timed:
        for row in (*found["rows"], found["floor"]):
            for numbers in (*row["seeds"].values(), row["mean"], row["sd"]):
                numbers.pop("seconds_per_image", None)
    return found


def row_of(found: dict, generator: str, steps: int, guidance: float) -> dict:
    (row,) = [r for r in found["rows"] if (r["generator"], r["steps"], r["guidance"]) == (generator, steps, guidance)]
    return row


def drawn(seed: int) -> list[int]:
    return torch.randperm(24, generator=torch.Generator().manual_seed(seed)).tolist()
