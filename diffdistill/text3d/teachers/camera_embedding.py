"""Cameras as 16 numbers, and a small network that tells a fake score of them.

    camera to world (4, 4), position / distance --flattened--> 16 numbers --linear, SiLU, linear--> added to the time

MVDream (arXiv 2308.16512) tells its network of cameras so. In variational score distillation (ProlificDreamer, arXiv
2305.16213) the fake score of a text-to-image model is told of them in the same way, and the teacher is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffdistill.diffusion import Condition
from diffdistill.models.backbone import Backbone
from diffdistill.text3d.cameras import Cameras

NUMBERS = 16  # of a camera


def camera_numbers(cameras: Cameras) -> Tensor:
    """The matrices camera-to-world of cameras, with positions on the unit sphere, row by row: (V, 16).

    >>> camera_numbers(Cameras.of([0.0], [0.0], [3.0], [40.0])).view(4, 4)[:3, 3].tolist()
    [1.0, 0.0, 0.0]
    """
    world = cameras.to_world()
    position = world[:, :3, 3:]
    top = torch.cat([world[:, :3, :3], position / position.norm(dim=1, keepdim=True)], 2)
    return torch.cat([top, world[:, 3:]], 1).flatten(1)


class CameraEmbedding(nn.Module):
    """Cameras to what is added to the embedding of the time; 0 at the start.

    Args:
        width: of the embedding of the time.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(NUMBERS, width), nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, cameras: Tensor) -> Tensor:
        """Numbers of cameras (R, 16) to (R, width)."""
        made: Tensor = self.out(nn.functional.silu(self.into(cameras)))
        return made


class FakeWithCamera(nn.Module):
    """A UNet of Stable Diffusion that is told the camera of each view, as a fake score is.

    At the start it predicts what the UNet does. The UNet may be the teacher's own, with LoRA adapters: nothing of it
    is changed, so without this module, and with its adapters off, it is the teacher.

    Args:
        network: the backbone; its condition has the parts "text" and "camera", (R, 16).
    """

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network
        self.camera = CameraEmbedding(network.inner.time_embedding.linear_2.out_features)

    @property
    def inner(self) -> Any:
        """The diffusers model."""
        return self.network.inner

    def forward(self, x_t: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """Predict; see `Backbone.forward`."""
        if not isinstance(cond, dict) or (cameras := cond.get("camera")) is None:
            raise ValueError("the condition must be a mapping with the part camera")
        with _added(self.inner.time_embedding, self.camera(cameras)):
            found: Tensor = self.network(x_t, time, cond)
        return found


@contextmanager
def _added(module: nn.Module, more: Tensor) -> Iterator[None]:
    """Within the block, `more` is added to what the module returns."""
    hook = module.register_forward_hook(lambda _, given, output: output + more.to(output.dtype))
    try:
        yield
    finally:
        hook.remove()
