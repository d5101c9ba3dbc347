"""The method that trains generators, with a tiny prior and tiny generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from made import made
from text3d.tiny_priors import random_prior
from torch import Tensor

from diffdistill.distill import SampleRandom
from diffdistill.methods import TextTo3D
from diffdistill.text3d.prior import save_prior
from diffdistill.text3d.regularisers import LinearSchedule

PROMPTS = ["a red ball", "a blue box", "a blue ball"]
SMALL = {"rendering__resolution": 8, "rendering__samples": 6, "rendering__rings": 2}


def save_things(folder: Path) -> Path:
    """A prior and a file of prompts."""
    save_prior(random_prior(), folder / "prior")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return folder


def build(things: Path, generator: str = "hyper_tiny", seed: int = 0, prepare: bool = True, **more: Any) -> Any:
    """The method on what `save_things` wrote."""
    torch.manual_seed(seed)
    given = {"prior": str(things / "prior"), "prompts": str(things / "prompts.txt"), "generator": generator}
    return made(TextTo3D, prepare, **{**given, **SMALL, **more})


def gradient(method: Any, indices: list[int]) -> Tensor:
    """The gradient of the first phase in the generator, for samples of these indices."""
    random = SampleRandom(0, indices)
    batch = method.batch([i % len(PROMPTS) for i in indices], random)
    loss, _ = method.phases(0)[0].loss(batch, random, {})
    parameters = [p for p in method.networks["generator"].parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def constant(value: float) -> LinearSchedule:
    return LinearSchedule.constant(value)
