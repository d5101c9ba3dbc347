"""The Janus measure: how much more alike opposite views of an object are than they should be.

    views of one object, 8 azimuths x 3 elevations --> 12 pairs of opposite views --alike--> mean, minus the true mean

An object with two faces looks from behind as it looks from the front: a chair with two backs, a mug with two handles.
For two views of an object on white, let f and b be white minus the view, so that both are 0 where nothing is. Then

    alike = 2 f.b / (f.f + b.b)      in [0, 1]: 1 for equal views, 0 for views that have nothing in common

The measure is the mean of `alike` over all pairs, of the object, minus that mean of its true renders. So it is 0 where
opposite views are as alike as they should be, positive where they are more alike, and in (-1, 1).

Notable:
- views are compared as they are, not mirrored. The outline of a back view is that of the front view, mirrored; so a
  thing with a handle on one side has unlike opposite views, and one with handles on both sides alike ones;
- it says nothing of things that look alike from both sides in truth, such as a table or a ball: there it is near 0
  whatever is made. Faults of another kind change it too; so it is read beside PSNR and the pictures;
- light comes from one side in true renders, so that opposite views differ a little in shade.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdistill.text3d.things.viewpoints import REFERENCE_AZIMUTH_DEG, REFERENCE_ELEVATION_DEG


def alike(one: Tensor, other: Tensor) -> Tensor:
    """How alike two views on white are, by the formula above.

    Args:
        one: (..., 3, S, S) in [0, 1].
        other: of the same shape.

    Returns:
        (...) float64 in [0, 1]; 1 where both views are white.

    >>> black, half = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    >>> half[:, :, 0] = 0  # black in the left column alone: 2 * 2 / (4 + 2)
    >>> round(alike(black, half).item(), 4)
    0.6667
    """
    f, b = (1 - view.double() for view in (one, other))
    common, squares = ((x).sum((-3, -2, -1)) for x in (f * b, f * f + b * b))
    return torch.where(squares > 0, 2 * common / squares.clamp_min(torch.finfo(torch.float64).tiny), 1.0)


def opposite_alike(views: Tensor) -> float:
    """The mean of `alike` over the 12 pairs of opposite reference views of one object.

    Args:
        views: (24, 3, S, S) in [0, 1] on white, in the order of `viewpoints.reference_views`.
    """
    around = len(REFERENCE_AZIMUTH_DEG)
    of_elevation = views.unflatten(0, (len(REFERENCE_ELEVATION_DEG), around))
    return float(alike(of_elevation[:, : around // 2], of_elevation[:, around // 2 :]).mean())


def janus(made: Tensor, true: Tensor) -> float:
    """How much more alike opposite views are than in truth, in (-1, 1).

    Args:
        made: reference views of an object, (24, 3, S, S) in [0, 1] on white.
        true: true renders from the same cameras.
    """
    return opposite_alike(made) - opposite_alike(true)
