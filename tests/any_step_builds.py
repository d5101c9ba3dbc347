"""Methods of two times, small: built on the tiny pictures, and their first loss."""

from pathlib import Path
from typing import Any

import torch

from diffdistill.distill import SampleRandom
from diffdistill.methods import MeanFlow, SelfE, Shortcut

ROOT = Path(__file__).parents[1]
TEACHER = str(ROOT / "assets" / "teacher")
VAE = str(ROOT / "assets" / "teacher" / "vae")
SMALL = {"block_out_channels": (32, 32), "text_width": 32, "text_layers": 1, "learning_rate": 1e-3}
METHODS = {
    "self_e": (SelfE, {"span_share": 0.5, "evaluator_decay": 0.9, "fake_from": 0.5, "reach": 0.75, "finest_steps": 8}),
    "flow": (SelfE, {"same": 1.0}),
    "mean_flow": (MeanFlow, {"same": 0.5, "guidance": 2.0, "guidance_mix": 0.5}),
    "mean_flow_difference": (MeanFlow, {"same": 0.5, "derivative": "difference"}),
    "shortcut": (Shortcut, {"same": 0.5, "finest": 8, "guidance": 2.0, "average_decay": 0.9}),
}


def build(pictures: str, name: str = "self_e", **more: Any) -> Any:
    torch.manual_seed(0)
    kind, options = METHODS[name]
    return kind(VAE, pictures, **{**SMALL, **options, **more})


def first_loss(method: Any, progress: float = 0.75, n: int = 8) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    method.progress = progress
    random = SampleRandom(0, range(n))
    return method.phases(0)[0].loss(method.batch([i % 16 for i in range(n)], random), random, {})
