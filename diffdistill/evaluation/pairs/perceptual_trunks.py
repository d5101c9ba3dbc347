"""The trunks of perceptual distances: AlexNet and VGG-16, plain or shift-tolerant, as tables of convolutions.

    normalised images (N, 3, H, W) -> five stages of convolutions, with halving between them -> five feature maps

Notable:
- a trunk holds no weights: they are passed to `maps`, under the names of the published files;
- the tables say which module of those files each convolution is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError


class Convolution(NamedTuple):
    """A convolution and its ReLU; where `blurred`, a blur that halves comes between the two."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 3
    padding: int = 1
    stride: int = 1
    blurred: bool = False


@dataclass(frozen=True)
class Trunk:
    """Convolutions in five stages, each of which gives a feature map.

    Args:
        stages: the convolutions of each stage.
        pooled: the stages before which `pool` is applied.
        pool: halves a map.
        least_side: the smallest side of an image, in pixels, that leaves a map at the end.
    """

    stages: Sequence[Sequence[Convolution]]
    pooled: Sequence[int]
    pool: Callable[[Tensor], Tensor]
    least_side: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, by name."""
        layers = [layer for stage in self.stages for layer in stage]
        weights = {f"{v.name}.weight": (v.outputs, v.inputs, v.kernel, v.kernel) for v in layers}
        return weights | {f"{v.name}.bias": (v.outputs,) for v in layers}

    @property
    def channels(self) -> list[int]:
        """The number of channels of each feature map."""
        return [stage[-1].outputs for stage in self.stages]

    def maps(self, tensors: Mapping[str, Tensor], x: Tensor) -> Iterator[Tensor]:
        """The five feature maps of normalised images (N, 3, H, W)."""
        for number, stage in enumerate(self.stages):
            if number in self.pooled:
                x = self.pool(x)
            for v in stage:
                x = F.conv2d(x, tensors[f"{v.name}.weight"], tensors[f"{v.name}.bias"], v.stride, v.padding)
                x = F.relu(blur_and_halve(x) if v.blurred else x)
            yield x


def blur_and_halve(x: Tensor) -> Tensor:
    """Every second value after the binomial filter (1, 2, 1) / 4 along both axes, with borders of two reflected."""
    return _binomial(F.pad(x, (2, 2, 2, 2), mode="reflect"))


def l2_pool(x: Tensor) -> Tensor:
    """sqrt(g * x^2) at every second value (Ding et al. 2020), with g a Hann window of three taps and zero borders."""
    return (_binomial(F.pad(x.square(), (1, 1, 1, 1))) + 1e-12).sqrt()


# For each network: channels and kernels of the stages, and the positions of their convolutions among all modules, for
# torchvision's networks and for those with blurs in between.
_WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
_KERNELS = {"alex": (11, 5, 3, 3, 3), "vgg": (3, 3, 3, 3, 3)}
_MODULES = {
    ("alex", False): ((0,), (3,), (6,), (8,), (10,)),
    ("alex", True): ((0,), (5,), (9,), (11,), (13,)),
    ("vgg", False): ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
    ("vgg", True): ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32)),
}
_LEAST_SIDES = {("alex", False): 31, ("alex", True): 21, ("vgg", False): 16, ("vgg", True): 18}


def trunk_named(net: str, tolerant: bool = False) -> Trunk:
    """The trunk of "alex" or "vgg", with torchvision's tensor names, or, where `tolerant`, with those of ST-LPIPS.

    Shift-tolerant pooling takes a maximum at every place and then blurs and halves. In place of AlexNet's first stride
    of 4 it has a stride of 1 and such a blur.

    Raises:
        UserError: an unknown net.
    """
    if net not in _WIDTHS:
        raise UserError(f"net should be one of {', '.join(_WIDTHS)}, got {net!r}")
    stages, inputs = [], 3
    for number, modules in enumerate(_MODULES[net, tolerant]):
        stage, width, kernel = [], _WIDTHS[net][number], _KERNELS[net][number]
        for module in modules:
            name = f"net.slice{number + 1}.{module}" if tolerant else f"features.{module}"
            stage.append(Convolution(name, inputs, width, kernel, padding=1 if kernel == 3 else 2))
            inputs = width
        stages.append(stage)
    if net == "alex":
        stages[0] = [stages[0][0]._replace(stride=1 if tolerant else 4, blurred=tolerant)]
    window = 3 if net == "alex" else 2

    def pool(x: Tensor) -> Tensor:
        return blur_and_halve(F.max_pool2d(x, window, 1)) if tolerant else F.max_pool2d(x, window, 2)

    return Trunk(stages, (1, 2) if net == "alex" else (1, 2, 3, 4), pool, _LEAST_SIDES[net, tolerant])


def _binomial(x: Tensor) -> Tensor:
    taps = torch.tensor([0.25, 0.5, 0.25], device=x.device)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, stride=2, groups=x.shape[1])
