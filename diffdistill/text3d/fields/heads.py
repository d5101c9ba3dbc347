"""Small networks that read signed distance and colour from features.

    features (P, N, C) --chain of matrices, ReLU between--> distance;   --another chain--> colour
    joint:             --one chain--> distance and colour

Notable:
- there are no biases: a head is a chain of matrices. A matrix (C, H) serves all objects; (P, C, H) is a matrix for each
  object, as a hypernetwork makes them;
- features that all objects share are multiplied with the matrices of all objects in one product;
- the last matrix is small at the start, so that a field begins as a sphere (`feature_field`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffdistill.errors import UserError

from .ranges import check_number, check_whole

Colour = Literal["sigmoid", "mipnerf"]
FIRST_OUTPUT = 0.05  # rms of what a head says at the start, of hidden values with an rms of 1


@dataclass(frozen=True)
class HeadSettings:
    """The networks that read a field's values from features.

    Args:
        hidden: widths of the hidden layers; none for one matrix.
        joint: one network for distance and colour, in place of one for each.
        colour: "sigmoid"; or "mipnerf", 1.002 sigmoid - 0.001, which reaches 0 and 1 (clamped to them here).
        sphere: radius r0 of the sphere that the network's distance is added to.

    Raises:
        UserError: a setting is out of its range.
    """

    hidden: tuple[int, ...] = (64,)
    joint: bool = False
    colour: Colour = "sigmoid"
    sphere: float = 0.5

    def __post_init__(self) -> None:
        for width in self.hidden:
            check_whole("head.hidden", width, 1, 4096)
        if self.colour not in get_args(Colour):
            raise UserError(f"head.colour is {self.colour!r}; it must be one of {get_args(Colour)}")
        check_number("head.sphere", self.sphere, 0.0, 1e3)

    def check_inside(self, radius: float) -> None:
        """Raise UserError for a half side of the box that is out of its range, or that the sphere does not fit into."""
        check_number("radius", radius, 0.0, 1e3)
        if self.sphere >= radius:
            raise UserError(f"head.sphere is {self.sphere}, radius {radius}; the sphere must be smaller than the box")

    def shapes(self, inputs: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Rows and columns of the matrices of each chain: those of distance and of colour, or the one of both.

        >>> HeadSettings(hidden=(64,)).shapes(32)
        (((32, 64), (64, 1)), ((32, 64), (64, 3)))
        """
        ends = (4,) if self.joint else (1, 3)
        widths = [(inputs, *self.hidden, end) for end in ends]
        return tuple(tuple(zip(w, w[1:], strict=False)) for w in widths)


def first_deviation(rows: int, last: bool) -> float:
    """The standard deviation of a matrix with so many rows at the start, which keeps the rms of what ReLU lets through.

    Args:
        rows: number of inputs.
        last: whether it is the last matrix of its chain, which says little at first.
    """
    return FIRST_OUTPUT / rows**0.5 if last else (2 / rows) ** 0.5


class Heads:
    """Heads with their matrices, to be applied to features.

    Args:
        settings: how the matrices are used.
        chains: for each chain of `settings.shapes`, its matrices: (in, out), or (P, in, out).
    """

    def __init__(self, settings: HeadSettings, chains: Sequence[Sequence[Tensor]]) -> None:
        self.settings, self.chains = settings, chains

    def distance(self, features: Tensor) -> Tensor:
        """What the network says of the distance, (P, N), at features (P or 1, N, C)."""
        chain = self.chains[0]
        if self.settings.joint:
            chain = [*chain[:-1], chain[-1][..., :1]]
        return perceptron(features, chain)[..., 0]

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (P, N) and colour (P, N, 3) in [0, 1], at features (P or 1, N, C)."""
        if self.settings.joint:
            made = perceptron(features, self.chains[0])
            return made[..., 0], self._colour(made[..., 1:])
        return perceptron(features, self.chains[0])[..., 0], self._colour(perceptron(features, self.chains[1]))

    def _colour(self, x: Tensor) -> Tensor:
        return x.sigmoid() if self.settings.colour == "sigmoid" else (1.002 * x.sigmoid() - 0.001).clamp(0, 1)


class SharedHeads(nn.Module):
    """Heads whose matrices are learnt and serve all objects.

    Args:
        settings: the sizes.
        inputs: C, channels of the features.
    """

    def __init__(self, settings: HeadSettings, inputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.chains = nn.ModuleList()
        for shapes in settings.shapes(inputs):
            deviations = [first_deviation(rows, i == len(shapes) - 1) for i, (rows, _) in enumerate(shapes)]
            matrices = [torch.randn(shape) * std for shape, std in zip(shapes, deviations, strict=True)]
            self.chains.append(nn.ParameterList(matrices))

    def forward(self) -> Heads:
        """The heads with the matrices of now."""
        return Heads(self.settings, [list(chain) for chain in self.chains])  # type: ignore[call-overload]


def perceptron(features: Tensor, chain: Sequence[Tensor]) -> Tensor:
    """Matrices one after another, with ReLU between.

    Args:
        features: (P, N, C), or (1, N, C) for all objects.
        chain: matrices (in, out), or (P, in, out).

    Returns:
        (P, N, out); (1, N, out) where all is shared.
    """
    x = _product(features, chain[0])
    for matrix in chain[1:]:
        x = _product(x.relu(), matrix)
    return x


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    if matrix.dim() == 2 or len(x) == len(matrix):
        return x @ matrix
    count, rows, columns = matrix.shape
    side_by_side = matrix.transpose(0, 1).reshape(rows, count * columns)
    return (x[0] @ side_by_side).unflatten(1, (count, columns)).transpose(0, 1)
