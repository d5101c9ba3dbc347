"""What is behind the objects: one colour, a colour for each view, or a small network of the direction.

    image = what the field shows + (1 - opacity) background

Notable:
- a teacher that is told the background's colour wants it given, one for each view;
- the network is that of ScaleDreamer and threestudio: spherical harmonics of the direction, then 2 hidden layers of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffdistill.errors import UserError, shown


def harmonics(directions: Tensor) -> Tensor:
    """The 9 real spherical harmonics of degrees 0, 1 and 2, orthonormal on the sphere.

    This is the "degree 3" of tiny-cuda-nn, which counts the degrees.

    Args:
        directions: (..., 3), of length 1.

    Returns:
        (..., 9).
    """
    x, y, z = directions.unbind(-1)
    parts = [
        torch.full_like(x, 0.28209479177387814),
        0.4886025119029199 * y,
        0.4886025119029199 * z,
        0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        1.0925484305920792 * y * z,
        0.31539156525252005 * (3 * z * z - 1),
        1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
    ]
    return torch.stack(parts, -1)


class LearnedBackground(nn.Module):
    """A colour for each direction, learned: harmonics, two hidden layers with ReLU and no biases, and a sigmoid.

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in ((9, width), (width, width), (width, 3)))

    def forward(self, directions: Tensor) -> Tensor:
        """Directions (..., 3) of length 1 to colours (..., 3) in [0, 1]."""
        first, second, last = self.layers
        made: Tensor = last(F.relu(second(F.relu(first(harmonics(directions))))))
        return made.sigmoid()


Background = Tensor | LearnedBackground | tuple[float, float, float]


def background_colours(background: Background, directions: Tensor, objects: int) -> Tensor:
    """Backgrounds as they are added to images, to be broadcast to (P, V, 3, H, W).

    Args:
        background: three numbers; a tensor (3,), (V, 3) or (P, V, 3), or (P, V, 3, H, W), where any of P, V, H and W
            may be 1; or a network of the direction.
        directions: (G, V, H, W, 3) of the rays, with G = 1 where all objects share the cameras.
        objects: P.

    Raises:
        UserError: the shape of the tensor does not fit.
    """
    views, (height, width) = directions.shape[1], directions.shape[2:4]
    if isinstance(background, LearnedBackground):
        learned: Tensor = background(directions)
        return learned.movedim(-1, 2)
    if isinstance(background, tuple):
        background = directions.new_tensor(background)
    colours = background.to(directions)
    if colours.dim() <= 3:
        colours = colours[..., None, None]
    whole = (objects, views, 3, height, width)
    missing = len(whole) - colours.dim()
    fits = 2 >= missing >= 0 and all(a in (1, b) for a, b in zip(colours.shape, whole[missing:], strict=True))
    if not fits or colours.shape[-3] != 3:
        raise UserError(
            f"the background is {shown(tuple(background.shape))}; it must be (3,), ({views}, 3) or "
            f"({objects}, {views}, 3): one colour, one for each view, or one for each view of each object"
        )
    return colours[(None,) * missing]


def over(front: Tensor, opacity: Tensor, colours: Tensor) -> Tensor:
    """Images in front of their backgrounds: (P, V, 3, H, W) and opacities (P, V, H, W) to (P, V, 3, H, W)."""
    return front + (1 - opacity[:, :, None]) * colours
