"""The fast path for small systems: a field is asked once on a grid, and views are sparse products of the answers.

    field --once, at N nodes--> table: signed distance (N, P), colour (3, N, P)
    views (`bake_views`, `BakedRings`) --sparse product--> both at all samples --sums along rays--> images

Notable:
- a field's networks run at the 18,000 nodes in a ball of a 32^3 grid, once a step, and not at each sample of each view;
- what is rendered is the trilinear interpolation of the field: details below the spacing of the nodes are lost;
- the sums along rays and their gradients are written out (`_Sums`), block of samples after block, so that they
  stay in the processor's cache; `volume` has the same in plain functions, which the tests compare;
- in training steps, random rings of a pool or new ones each step both work; see `baked_views`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffdistill.errors import UserError
from diffdistill.text3d.background import Background, background_colours, over
from diffdistill.text3d.baked_views import BakedViews, Grid, product
from diffdistill.text3d.field import Field
from diffdistill.text3d.render import Rendered
from diffdistill.text3d.volume import volsdf_density

WHITE = (1.0, 1.0, 1.0)


class Baked(NamedTuple):
    """A field at the nodes of a grid.

    Attributes:
        sdf: (N, P).
        colour: (3, N, P).
    """

    sdf: Tensor
    colour: Tensor


def bake(field: Field, grid: Grid) -> Baked:
    """Ask a field at all nodes of a grid, with its gradient; single precision, or double if the field's is.

    Raises:
        UserError: the boxes differ.
    """
    if abs(field.radius - grid.radius) > 1e-6 * grid.radius:
        raise UserError(
            f"the field's box has half-side {field.radius:g}, and the grid's {grid.radius:g}; make them equal"
        )
    sdf, colour = field(grid.points[None])
    kept = torch.float64 if sdf.dtype == torch.float64 else torch.float32
    return Baked(sdf.to(kept).t().contiguous(), colour.to(kept).permute(2, 1, 0).contiguous())


def render_baked(baked: Baked, views: BakedViews, sharpness: float, background: Background = WHITE) -> Rendered:
    """Images of baked objects.

    Args:
        baked: P objects, from `bake`.
        views: V of them, prepared for the same grid.
        sharpness: k of the density; see `volsdf_density`.
        background: see `background_colours`.

    Returns:
        `Rendered`, without normals and samples.

    Raises:
        UserError: the grid of the views has another number of nodes.
    """
    nodes, objects = baked.sdf.shape
    if nodes != len(views.grid):
        raise UserError(
            f"the baked field has {nodes} nodes, and the views' grid {len(views.grid)}; use one grid for both"
        )
    kept = views.places.dtype
    sums = _Sums.apply(baked.sdf.to(kept), baked.colour.to(kept), views, float(sharpness))
    image_shape = (len(views.cameras), views.height, views.width)

    def image(values: Tensor) -> Tensor:  # (..., r, P) to (P, V, ..., H, W)
        whole = values.new_zeros(*values.shape[:-2], math.prod(image_shape), objects)
        whole = whole.index_copy(-2, views.hits, values).unflatten(-2, image_shape)
        return whole.movedim((-1, -4), (0, 1))

    front, opacity, depth = (image(values) for values in sums)
    directions = views.cameras.rays(views.height, views.width).directions[None]
    colours = background_colours(background, directions, objects)
    return Rendered(over(front, opacity, colours), opacity, depth)


class _Sums(torch.autograd.Function):
    """Sums along rays: colour (3, r, P), opacity (r, P) and depth (r, P) of tables (N, P) and (3, N, P).

    With E_i what is left after sample i, w_i = E_i-1 - E_i. For a loss with gradients g_i for the weights, that for the
    optical depth of sample i is g_i E_i - sum over j > i of g_j w_j. One buffer (S, r, P) serves the channels in turn,
    and the colours of samples are interpolated again in the backward pass: that costs less than to keep them.
    """

    @staticmethod
    def forward(
        ctx: Any, sdf_table: Tensor, colours: Tensor, views: BakedViews, sharpness: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, matrix = (*views.places.shape, sdf_table.shape[1]), views.matrix()
        sdf = product(matrix, sdf_table).view(shape)
        left = torch.empty_like(sdf)
        before = torch.ones_like(sdf[0])
        for i, values in enumerate(sdf):
            passed = volsdf_density(values, sharpness).mul_(views.lengths[i, :, None]).neg_().exp_()
            before = torch.mul(before, passed, out=left[i])
        weights, buffer = _weights(left), torch.empty_like(sdf)
        depth, total = torch.zeros_like(before), before.new_zeros(3, *before.shape)
        for colour, into in zip(colours, total, strict=True):
            product(matrix, colour, buffer.view(len(views), -1))
            for i, values in enumerate(buffer):
                into.addcmul_(values, weights[i])
        for i, places in enumerate(views.places):
            depth.addcmul_(weights[i], places[:, None])
        ctx.save_for_backward(sdf, left, colours)
        ctx.views, ctx.sharpness = views, sharpness
        return total, 1 - before, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        sdf, left, colours = ctx.saved_tensors
        (of_total, of_opacity, of_depth), views, k = gradients, ctx.views, ctx.sharpness
        matrix, transposed = views.matrix(), views.transposed()
        weights, buffer = _weights(left), torch.empty_like(sdf)
        flat = buffer.view(len(views), -1)
        g = torch.addcmul(of_opacity, views.places[:, :, None], of_depth)
        of_colours = torch.empty_like(colours)
        for channel, colour in enumerate(colours):
            product(matrix, colour, flat)
            for i in range(len(g)):
                g[i].addcmul_(buffer[i], of_total[channel])
                torch.mul(weights[i], of_total[channel], out=buffer[i])
            product(transposed, flat, of_colours[channel])
        behind = torch.zeros_like(of_opacity)  # sum of g_j w_j over the samples behind
        for i in range(len(g) - 1, -1, -1):
            torch.addcmul(behind, g[i], left[i], value=-1, out=buffer[i])
            behind.addcmul_(g[i], weights[i])
            slope = sdf[i].abs().mul_(-k).exp_()  # times - k^2 / 2 the density's derivative
            buffer[i].mul_(slope).mul_(views.lengths[i, :, None] * (k * k / 2))
        return product(transposed, flat), of_colours, None, None


def _weights(left: Tensor) -> Tensor:
    return torch.cat([1 - left[:1], left[:-1] - left[1:]])
