"""What a generator makes of prompts: objects in a box, as signed distance and colour at any point.

    prompts --generator--> Field;   field(points) -> signed distance, colour
                             `--> rendered (`render`, `baked`), or made a mesh (`mesh`)

Notable:
- a field holds P objects, one for each prompt, and is asked for all of them at once;
- the box is [-radius, radius]^3; +z is up, and azimuth 0 looks at the front, from +x. Outside of the box nothing is;
- colours are as a screen shows them (sRGB), and do not depend on the direction of the view.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class FieldValues(NamedTuple):
    """A field at points.

    Attributes:
        sdf: (P, N) signed distance, about; negative inside.
        colour: (P, N, 3) in [0, 1].
    """

    sdf: Tensor
    colour: Tensor


class Field(Protocol):
    """P objects in a box.

    Attributes:
        radius: half the side of the box.
    """

    radius: float

    def __len__(self) -> int:
        """P, the number of objects."""

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distances (P, N) at points (P, N, 3), or at points (1, N, 3) that all objects share."""

    def __call__(self, points: Tensor) -> FieldValues:
        """Signed distances and colours at points (P, N, 3), or (1, N, 3)."""
