"""Methods of two times, small: built on the tiny images, and their first loss."""

from pathlib import Path
from typing import Any

import torch
from made import made

from diffdistill.distill import SampleRandom
from diffdistill.methods import MeanFlow, SelfE, Shortcut

ROOT = Path(__file__).parents[1]
TEACHER = str(ROOT / "assets" / "teacher")
VAE = str(ROOT / "assets" / "teacher" / "vae")
SMALL = {
    "network__block_out_channels": (32, 32),
    "network__text_width": 32,
    "network__text_layers": 1,
    "optimizer__learning_rate": 1e-3,
}
METHODS = {
    "self_e": (
        SelfE,
        {
            "span_share": 0.5,
            "ema_decay": 0.9,
            "fake_from": 0.5,
            "sampling__target_fraction": 0.75,
            "sampling__finest_steps": 8,
        },
    ),
    "flow": (SelfE, {"flow_matching_share": 1.0}),
    "mean_flow": (MeanFlow, {"flow_matching_share": 0.5, "guidance_scale": 2.0, "guidance_mix": 0.5}),
    "mean_flow_difference": (MeanFlow, {"flow_matching_share": 0.5, "derivative": "difference"}),
    "shortcut": (Shortcut, {"flow_matching_share": 0.5, "finest": 8, "guidance_scale": 2.0, "ema_decay": 0.9}),
}


def build(pictures: str, name: str = "self_e", **more: Any) -> Any:
    torch.manual_seed(0)
    kind, options = METHODS[name]
    settings = {"network__autoencoder": VAE, "data__source": pictures, **SMALL, **options, **more}
    return made(kind, **settings)


def first_loss(method: Any, progress: float = 0.75, n: int = 8) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    method.progress = progress
    method.begin_step(0)
    random = SampleRandom(0, range(n))
    return method.phases(0)[0].loss(method.batch([i % 16 for i in range(n)], random), random, {})
