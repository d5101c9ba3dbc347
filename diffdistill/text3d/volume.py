"""Volume rendering along rays, as pure functions: density of a signed distance, weights, sums, and where to sample.

    edges t_0 < t_1 < .. < t_S     S intervals in [near, far] of each ray; a field is asked at their middles
    sigma_i                        density of an interval, constant in it (`volsdf_density`)
    alpha_i = 1 - exp(-sigma_i (t_i+1 - t_i))          what the interval hides
    T_i = prod over j < i of (1 - alpha_j)             what reaches it
    w_i = T_i alpha_i                                  its weight; the weights add up to the opacity

Notable:
- the last dimension is that of the intervals, and everything before it is free: (R, S), or (P, R, S);
- alpha is exact for a constant density, and so never above 1; ScaleDreamer takes sigma delta itself, which may be;
- the compositing of nerfacc (Li et al. 2023) gives the same numbers; `compositing` chooses, and falls back on our own;
- depth is not divided by the opacity: the quotient has gradients of 1e7 where a ray is empty.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError, shown

Backend = Literal["auto", "own", "nerfacc"]


def volsdf_density(sdf: Tensor, sharpness: float | Tensor) -> Tensor:
    """The density k Psi(-sdf) of a signed distance, with Psi the Laplace distribution's function of scale 1 / k.

    It is k / 2 on the surface, k deep inside and 0 far outside (VolSDF, Yariv et al. 2021, equations 2 and 3, with
    alpha = k and beta = 1 / k; ScaleDreamer keeps k = 30 in a box of half-side 2). Of the usual form
    k (1/2 + 1/2 sign(sdf) expm1(-k |sdf|)), the outside loses all digits, and the gradient on the surface is 0; this
    form keeps both.

    Args:
        sdf: signed distances of any shape, negative inside.
        sharpness: k, above 0, in 1 / units of the box; a tensor is broadcast.

    Returns:
        Densities of the shape of `sdf`, in [0, k].

    >>> volsdf_density(torch.tensor([-9.0, 0.0, 9.0]), 20.0).tolist()[:2]
    [20.0, 10.0]
    """
    positive = F.relu(sdf)
    outside = torch.exp(-sharpness * positive)
    inside = torch.expm1(sharpness * (sdf - positive))  # of min(sdf, 0), with a gradient of 1 on the surface
    return (outside - inside) * (sharpness / 2)


def alphas(density: Tensor, lengths: Tensor) -> Tensor:
    """What each interval hides, 1 - exp(-sigma delta), in [0, 1]; both arguments are (..., S)."""
    return -torch.expm1(-density * lengths)


def transmittance(density: Tensor, lengths: Tensor) -> Tensor:
    """What reaches each interval, exp(-sum of sigma delta before it), in [0, 1]; all are (..., S)."""
    depth = (density * lengths)[..., :-1].cumsum(-1)  # not cumsum - own: infinite densities would give NaN
    return torch.exp(-torch.cat([torch.zeros_like(density[..., :1]), depth], -1))


def render_weights(density: Tensor, edges: Tensor) -> Tensor:
    """The weight of each interval.

    Args:
        density: (..., S), constant within an interval; infinity is a wall, if its interval has a length.
        edges: (..., S + 1), ascending; an interval of length 0 has weight 0.

    Returns:
        (..., S) in [0, 1]; their sum over an opaque ray is 1.

    >>> render_weights(torch.tensor([1.0, torch.inf]), torch.tensor([0.0, 1.0, 1.5])).sum()
    tensor(1.)
    """
    lengths = edges.diff(dim=-1)
    return transmittance(density, lengths) * alphas(density, lengths)


def accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """The sum of values along rays: weights (..., S) and values (..., S, C) give (..., C)."""
    return (weights[..., None] * values).sum(-2)


class Compositing(NamedTuple):
    """The two functions that an image is put together with.

    Attributes:
        weights: as `render_weights`.
        accumulate: as `accumulate`.
    """

    weights: Callable[[Tensor, Tensor], Tensor]
    accumulate: Callable[[Tensor, Tensor], Tensor]


def compositing(backend: Backend = "auto") -> Compositing:
    """Compositing by nerfacc's dense functions, or by our own.

    Args:
        backend: "nerfacc"; "own"; or "auto", which is nerfacc where it is installed.

    Raises:
        UserError: the backend is unknown, or nerfacc was asked for and is not installed.
    """
    if backend not in ("auto", "own", "nerfacc"):
        raise UserError(f'compositing is {shown(backend)}; it must be "auto", "own" or "nerfacc"')
    installed = importlib.util.find_spec("nerfacc") is not None
    if backend == "own" or (backend == "auto" and not installed):
        return Compositing(render_weights, accumulate)
    if not installed:
        raise UserError("compositing by nerfacc needs nerfacc; install it with: pip install 'diffdistill[text3d]'")
    return Compositing(_nerfacc_weights, _nerfacc_accumulate)


def _nerfacc_weights(density: Tensor, edges: Tensor) -> Tensor:
    from nerfacc import render_weight_from_density

    ends = edges.expand(*density.shape[:-1], -1)
    weights: Tensor = render_weight_from_density(ends[..., :-1], ends[..., 1:], density)[0]
    return weights


def _nerfacc_accumulate(weights: Tensor, values: Tensor) -> Tensor:
    from nerfacc import accumulate_along_rays

    found: Tensor = accumulate_along_rays(weights, values.expand(*weights.shape, -1))
    return found


def middles(edges: Tensor) -> Tensor:
    """The middles of intervals: (..., S + 1) to (..., S)."""
    return (edges[..., 1:] + edges[..., :-1]) / 2


def stratified_edges(near: Tensor, far: Tensor, samples: int, jitter: Tensor | None = None) -> Tensor:
    """Edges of intervals that fill [near, far], of equal length, or moved at random by up to half of it.

    Args:
        near: (...) where they begin.
        far: (...) where they end, not before `near`.
        samples: S, the number of intervals, 1 or more.
        jitter: uniform in [0, 1): (..., 1), which moves all inner edges of a ray alike, or (..., S - 1).

    Returns:
        (..., S + 1), ascending; the first is `near` and the last `far`.
    """
    if samples < 1:
        raise UserError(f"a ray has {samples} samples; it must have 1 or more")
    inner = torch.arange(1, samples, device=near.device, dtype=near.dtype)
    if jitter is not None:
        inner = inner + (jitter - 0.5)
    length = (far - near)[..., None]
    inner = (near[..., None] + length * (inner / samples)).expand(*near.shape, samples - 1)
    return torch.cat([near[..., None], inner, far[..., None]], -1)


def resampled_edges(
    edges: Tensor, weights: Tensor, samples: int, jitter: Tensor | None = None, even: float = 0.01
) -> Tensor:
    """Places drawn from the weights of intervals, by the inverse of their cumulated distribution.

    Within an interval the distribution is uniform (NeRF, Mildenhall et al. 2020, section 5.2). No gradient is passed.

    Args:
        edges: (..., S + 1), ascending; broadcast against the weights.
        weights: (..., S), 0 or more.
        samples: n, how many places; they are taken at (i + 1/2) / n of the distribution.
        jitter: uniform in [0, 1), (..., 1) or (..., n): the places are taken at (i + jitter) / n.
        even: weight that is shared by the intervals of a ray as by their lengths, so that a ray without weights has
            places too.

    Returns:
        (..., n), ascending if the jitter is.
    """
    weights, edges = weights.detach(), edges.detach().expand(*weights.shape[:-1], -1)
    lengths = edges.diff(dim=-1)
    whole = lengths.sum(-1, keepdim=True)
    weights = weights + even * lengths / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    reached = torch.cat([torch.zeros_like(weights[..., :1]), weights.cumsum(-1)], -1)
    wanted = torch.arange(samples, device=edges.device, dtype=edges.dtype) + (0.5 if jitter is None else jitter)
    wanted = (wanted / samples * reached[..., -1:]).expand(*weights.shape[:-1], samples).contiguous()
    after = torch.searchsorted(reached.contiguous(), wanted, right=True).clamp(1, weights.shape[-1])
    low, high = reached.gather(-1, after - 1), reached.gather(-1, after)
    share = ((wanted - low) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)).clamp(0, 1)
    first, last = edges.gather(-1, after - 1), edges.gather(-1, after)
    return torch.lerp(first, last, share)


def merged_edges(edges: Tensor, more: Tensor) -> Tensor:
    """Edges and further places within them, sorted: (..., S + 1) and (..., n) to (..., S + n + 1)."""
    return torch.cat([edges, more], -1).sort(-1).values
