"""The perceptual term of the codec's loss: shift-tolerant LPIPS, fast enough to train with.

It is the distance that `diffdistill.evaluation.pairs` measures (`st_lpips("alex")`), but for the outermost pixels: the
first convolution (11 x 11) and the blur that halves after it are one convolution of 13 x 13 with a stride of 2. A codec
that is trained with a distance is flattered by it, so results are also measured by distances that no training used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.evaluation.pairs.perceptual import st_lpips
from diffdistill.evaluation.pairs.perceptual_trunks import blur_and_halve


class PerceptualLoss(nn.Module):
    """ST-LPIPS (AlexNet) of each pair, with a graph.

    Raises:
        UserError: the package with the weights is not there.
    """

    def __init__(self) -> None:
        super().__init__()
        distance = st_lpips("alex")
        tensors = {name.replace(".", "_"): value for name, value in distance._tensors.items()}
        for name, value in tensors.items():
            self.register_buffer(name, value, persistent=False)
        taps = torch.tensor([0.25, 0.5, 0.25])
        first = tensors["net_slice1_0_weight"]
        merged = F.conv_transpose2d(first.reshape(-1, 1, 11, 11), torch.outer(taps, taps)[None, None])
        self.register_buffer("first", merged.reshape(64, 3, 13, 13), persistent=False)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The distance of each pair (B,); images are (B, 3, H, W) in [0, 1], and only the second has a graph."""
        with torch.no_grad():
            references = self._maps(images)
        total = torch.zeros(len(images), device=images.device)
        for number, (a, b) in enumerate(zip(references, self._maps(reconstructions), strict=True)):
            a, b = a.float(), b.float()
            a = a / (a.square().sum(1, keepdim=True) + 1e-12).sqrt()
            b = b / (b.square().sum(1, keepdim=True) + 1e-12).sqrt()
            head = getattr(self, f"lin{number}_model_1_weight")
            total = total + ((a - b).square() * head).sum(1).mean((1, 2))
        return total

    def _maps(self, images: Tensor) -> list[Tensor]:
        shift, scale = self.get_buffer("scaling_layer_shift"), self.get_buffer("scaling_layer_scale")
        x = (2 * images - 1 - shift) / scale
        x = F.pad(x.contiguous(memory_format=torch.channels_last), (4, 4, 4, 4))
        maps = [F.relu(F.conv2d(x, self.first, self.net_slice1_0_bias, stride=2))]  # type: ignore[arg-type]
        for number, (name, padding) in enumerate(
            (("slice2_5", 2), ("slice3_9", 1), ("slice4_11", 1), ("slice5_13", 1))
        ):
            x = blur_and_halve(F.max_pool2d(maps[-1], 3, 1)) if number < 2 else maps[-1]
            weight, bias = getattr(self, f"net_{name}_weight"), getattr(self, f"net_{name}_bias")
            maps.append(F.relu(F.conv2d(x, weight, bias, padding=padding)))
        return maps
