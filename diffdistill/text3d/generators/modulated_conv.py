"""Style-modulated 3D convolutions, as StyleGAN2's (arXiv 1912.04958) with one axis more.

    weight w (O, I, k, k, k), style s (I) of an object:   w' = w s / sqrt(sum over I, k of (w s)^2 + 1e-8)

Notable:
- no object has weights of its own. The activations are scaled by s before the convolution, and its output is divided
  by the root after it. That equals the convolution with w' (a test compares them). So a batch is one convolution, and
  the memory for weights does not grow with the batch;
- the learning rate is equalised: weights are standard normal at first, and a constant scales them when they are used.
  So a step of Adam changes all of them by about the same share;
- styles and roots are computed in float32 under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.text3d.fields.precision import full_precision

SLOPE, GAIN = 0.2, 2**0.5  # of the leaky ReLU, which keeps the rms of standard normal values with this gain, about
CLAMP = 256.0  # of activations, which guards half precision


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU times sqrt 2, clamped to [-256, 256]."""
    return (F.leaky_relu(x, SLOPE) * GAIN).clamp(-CLAMP, CLAMP)


class EqualLinear(nn.Module):
    """A linear layer with an equalised learning rate.

    Args:
        inputs: width of what it reads, of about unit variance.
        outputs: width of what it makes.
        bias: its bias at the start.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.scale = inputs**-0.5
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.full((outputs,), bias))

    def forward(self, x: Tensor) -> Tensor:
        """(P, inputs) to (P, outputs)."""
        return F.linear(x, self.weight * self.scale, self.bias)


class ModulatedConv(nn.Module):
    """A 3D convolution whose input channels are scaled by a style; it keeps the size.

    Args:
        inputs: I, channels of what it reads.
        outputs: O, channels of what it makes.
        kernel: k, odd.
        style: width of w.
        demodulate: whether the weights of each output channel are scaled to a norm of 1.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate, self.scale = demodulate, (inputs * kernel**3) ** -0.5
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel, kernel))
        self.affine = EqualLinear(style, inputs, bias=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Activations (P, I, d, h, w) and styles (P, style) to (P, O, d, h, w)."""
        with full_precision(w):
            style = self.affine(w)  # (P, I)
            norm = self._norms(style) if self.demodulate else None
        scaled = x * style.to(x.dtype)[:, :, None, None, None]
        made = F.conv3d(scaled, self.weight * self.scale, padding=self.weight.shape[-1] // 2)
        return made if norm is None else made * norm.to(made.dtype)[:, :, None, None, None]

    def _norms(self, style: Tensor) -> Tensor:
        """(P, O): one over the norm of each output channel's weights, once they are scaled by the style."""
        squares = (self.weight * self.scale).square().sum((2, 3, 4))
        return (style.square() @ squares.T + 1e-8).rsqrt()


class Layer(nn.Module):
    """A modulated convolution, enlargement, a learnt map, noise, a bias and the activation.

    Args:
        inputs: channels of what it reads.
        outputs: channels of what it makes.
        style: width of w.
        enlarge: whether to double the side, by trilinear interpolation with the outer voxels kept in place.
        map_side: the side of a learnt map that is added, which is that of the output; 0 for none.
        noise: whether it can be given noise, with a learnt strength that is zero at first.
    """

    def __init__(
        self, inputs: int, outputs: int, style: int, enlarge: bool = False, map_side: int = 0, noise: bool = True
    ) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.convolution = ModulatedConv(inputs, outputs, 3, style)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.map = nn.Parameter(torch.zeros(outputs, map_side, map_side, map_side)) if map_side else None
        self.strength = nn.Parameter(torch.zeros(())) if noise else None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """Activations (P, inputs, n, n, n), styles (P, style) and noise (P or 1, 1, m, m, m), or None for zero."""
        x = self.convolution(x, w)
        if self.enlarge:
            x = double(x)
        shift = self.bias[:, None, None, None]
        if self.map is not None:
            shift = shift + self.map
        if self.strength is not None:  # the strength of no noise has a gradient of zero, and not none at all
            shift = shift + self.strength * (shift.new_zeros(1, 1, 1, 1) if noise is None else noise)
        return activate(x + shift.to(x.dtype))


def double(x: Tensor) -> Tensor:
    """(P, C, n, n, n) to twice the side, by trilinear interpolation with the outer voxels kept in place."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
