"""Integer tables of probabilities, which sum to 65,536. A saved codec holds them; they are never computed again.

    r    64 tables, one a scale index: values from -half to half, and one escape
    z    one table a level of quality and channel: values from -127 to 127

Every value has a share of at least 1 / 65,536, so that every value can be coded.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

from .coder import TOTAL
from .latent_codec import HyperPrior
from .scales import SCALES, Z_MOST, scale_of

DEVIATIONS = 9  # of a Gaussian that its table covers on each side


def half_width(index: int) -> int:
    """The largest value that the table of a scale index covers; larger ones are escaped.

    >>> half_width(0), half_width(63)
    (4, 579)
    """
    return math.ceil(DEVIATIONS * float(scale_of(torch.tensor(index, dtype=torch.float64))) - 1e-9) + 3


def to_integers(probabilities: np.ndarray) -> np.ndarray:
    """Shares of 65,536, each at least 1, in proportion to probabilities.

    >>> to_integers(np.array([0.0, 1.0, 3.0])).tolist()
    [1, 16384, 49151]
    """
    count = len(probabilities)
    shares = 1 + np.floor(probabilities / probabilities.sum() * (TOTAL - count)).astype(np.int64)
    shares[int(np.argmax(probabilities))] += TOTAL - int(shares.sum())
    return shares


def gaussian_table(index: int) -> np.ndarray:
    """The table of a scale index: 2 half + 1 values, and the escape."""
    half, scale = half_width(index), float(scale_of(torch.tensor(index, dtype=torch.float64)))
    root = 1 / (scale * math.sqrt(2))
    tail = [math.erfc((k - 0.5) * root) / 2 for k in range(half + 2)]  # of the distribution above k - 1/2
    inner = [tail[0] - tail[1] if k == 0 else tail[k] - tail[k + 1] for k in range(half + 1)]
    values = np.array([*inner[:0:-1], *inner, max(1e-7, 2 * tail[half + 1])])
    return to_integers(values)


def gaussian_tables() -> list[np.ndarray]:
    """The tables of all scale indexes."""
    return [gaussian_table(index) for index in range(SCALES)]


@torch.no_grad()
def hyper_tables(prior: HyperPrior) -> Tensor:
    """The tables of z: (L, Z, 255) int32."""
    levels, channels = prior.means.shape[:2]
    exact = copy.deepcopy(prior).double()
    values = torch.arange(-Z_MOST, Z_MOST + 1, dtype=torch.float64, device=prior.means.device)
    found = (
        exact.probabilities(values.expand(levels, channels, 1, -1), torch.arange(levels, device=values.device))[:, :, 0]
        .cpu()
        .numpy()
    )
    tables = np.stack([to_integers(row) for row in found.reshape(levels * channels, -1)])
    return torch.from_numpy(tables.reshape(levels, channels, -1)).to(torch.int32)
