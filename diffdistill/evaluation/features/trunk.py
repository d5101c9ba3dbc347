"""Image features of the trunks of shift-tolerant LPIPS, AlexNet and VGG-16: packages hold their weights.

    (N, 3, H, W) -> 8 bits -> bicubic to 64 x 64 -> five maps, unit length over channels -> means over positions

A map is normalised as LPIPS does it, and the means of all maps stand one after another. The weights were trained on
ImageNet and then tuned on judgements of people about pairs of patches.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.pairs.perceptual import st_lpips

SIDE = 64


class TrunkFeatures(Extractor):
    """Maps images to the means of the trunk's five normalised maps, times sqrt(d / 5).

    The factor makes the mean square of a feature at most 1, whatever d is, so that the cubic kernel of a kernel
    distance is not linear.

    Args:
        net: "alex" or "vgg".
        weights: as for `st_lpips`.
        device: where the network runs.
        allow_other_weights: as for `st_lpips`.

    Raises:
        UserError: as `st_lpips`.
    """

    resize = f"bicubic-antialias-{SIDE}"

    def __init__(
        self,
        net: str = "alex",
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        allow_other_weights: bool | str = False,
    ) -> None:
        if weights == "download":
            raise UserError("these weights are in the package stlpips-pytorch; install it, or name their file")
        self.device = torch.device(device)
        self._distance = st_lpips(net, weights, device, allow_other_weights)
        self.weights_sha256 = self._distance.protocol["weights_sha256"]
        self.dim = sum(self._distance.trunk.channels)
        self.name = f"{self._distance.name}-trunk"

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to the trunk's input (N, 3, 64, 64)."""
        x = images.float() / 255
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        return self._distance.scaled(x)

    def network(self, x: Tensor) -> Tensor:
        """Map the output of `prepare` to features of shape (N, dim)."""
        maps = list(self._distance.maps(x))
        means = [(m / (m.norm(dim=1, keepdim=True) + 1e-10)).mean((2, 3)) for m in maps]
        return torch.cat(means, 1) * (self.dim / len(maps)) ** 0.5
