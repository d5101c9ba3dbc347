"""Text to 3D with tiny stand-ins of Stable Diffusion and MVDream, of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_pipeline
import torch
from made import made

from diffdistill.methods import TextTo3D
from diffdistill.text3d.regularisers import LinearSchedule

PROMPTS = ["red apple", "blue car", "red car"]
KINDS = ("sd", "mvdream")
SMALL = {
    "rendering__renderer": "dense",
    "rendering__dense__size": 8,
    "rendering__dense__samples": 6,
    "rendering__dense__resampled": 3,
    "judging__reduction": "batch",
    "regularisers__eikonal": LinearSchedule.constant(0.0),
}


def save_teachers(folder: Path) -> Path:
    """The two pipelines, and a file of prompts."""
    for kind in KINDS:
        tiny_pipeline.save_tiny_pipeline(folder / kind, "epsilon", cameras=kind == "mvdream")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


def build(place: Path, kind: str = "sd", generator: str = "hyper_tiny", prepare: bool = True, **more: Any) -> Any:
    """The method with a tiny teacher."""
    torch.manual_seed(0)
    given = {
        "prior": None,
        "teacher__source": str(place / kind),
        "prompts": str(place / "prompts.txt"),
        "generator": generator,
    }
    return made(TextTo3D, prepare, **{**given, **SMALL, **more})
