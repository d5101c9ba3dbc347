"""Views of a grid as sparse matrices: which nodes each sample of each ray reads, and with which weights.

    grid of R^3 nodes; N of them are in use (all, or those around the ball)
    cameras -> rays that meet the box or ball -> S samples each -> cell and place in it -> 8 nodes and weights

    interpolation   CSR (S r, N), 8 entries a row; a table (N, C) becomes values (S r, C) at the samples
    its transpose   CSR (N, S r), for the backward pass; made when it is first needed

Notable:
- a sparse product costs a tenth of `grid_sample` forward, and less than that backward, on one core;
- 8 entries of 4 + 4 bytes, twice, and places and lengths: 140 bytes a sample. 4 views of 32x32 with 32 samples in the
  ball are about 100,000 samples, 14 MB; without the transpose half;
- the transpose is made by counting, without a sort of all entries: samples are sorted by cell (8 times fewer), and
  each entry's row and place follow from the counts;
- the parts are kept as plain tensors, and the sparse matrix is put together at each use, which costs microseconds:
  sparse tensors cannot be copied deeply, nor used under autocast to bfloat16;
- samples are ordered by their number first, then by ray, so that sums along rays are sums of large blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d import volume
from diffdistill.text3d.cameras import Cameras, Rays, Region, interval, require_sight

Parts = tuple[Tensor, Tensor, Tensor]  # of a CSR matrix: row pointers and columns, int32, and values


class Grid:
    """The nodes at which a field is baked.

    Args:
        resolution: R, nodes along each side of the box, 2 or more; the outermost lie on its faces.
        radius: half the side of the box.
        region: "ball" keeps the nodes of the cells that meet the ball of that radius; "box" keeps all.
        dtype: of the points.

    Attributes:
        points: (N, 3), where the nodes are.
        corners: (C, 8) int32, the nodes of each kept cell; x varies fastest, then y, then z.
        cell_of: ((R - 1)^3,) int32, which kept cell each cell of the box is, or -1.
    """

    def __init__(
        self, resolution: int = 32, radius: float = 1.0, region: Region = "ball", dtype: torch.dtype = torch.float32
    ) -> None:
        if resolution < 2:
            raise UserError(f"the grid has {resolution} nodes along a side; it must have 2 or more")
        if region not in ("ball", "box"):
            raise UserError(f'the region of a grid is {region!r}; it must be "ball" or "box"')
        self.resolution, self.radius, self.region = resolution, radius, region
        line = torch.linspace(-radius, radius, resolution, dtype=torch.float64)
        nearest = torch.maximum(line[:-1], -line[1:]).clamp_min(0).square()  # squared, of each cell along an axis
        squares = nearest[:, None, None] + nearest[:, None] + nearest
        kept = squares < (radius * (1 + 1e-4)) ** 2 if region == "ball" else torch.ones_like(squares, dtype=torch.bool)
        z, y, x = (place.flatten() for place in kept.nonzero().unbind(1))
        lowest = (z * resolution + y) * resolution + x
        plane = resolution**2
        steps = torch.tensor([a + b + c for a in (0, plane) for b in (0, resolution) for c in (0, 1)])
        nodes, corners = torch.unique(lowest[:, None] + steps, return_inverse=True)
        places = (nodes % resolution, nodes // resolution % resolution, nodes // plane)
        self.points = torch.stack([line[place] for place in places], -1).to(dtype)
        self.corners = corners.int()
        self.cell_of = torch.full((kept.numel(),), -1, dtype=torch.int32)
        self.cell_of[kept.flatten()] = torch.arange(len(corners), dtype=torch.int32)

    def __len__(self) -> int:
        """N, the number of nodes in use."""
        return len(self.points)

    def to(self, device: torch.device | str) -> Grid:
        """Move the grid to another device, and return it."""
        for name in ("points", "corners", "cell_of"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def locate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The kept cell (n,), int32, of each of points (n, 3), and the weights (n, 8) of its corners; they add up to 1.

        Points outside of the box are taken to its face. Points outside of the region have no kept cell, -1.
        """
        scaled = (points + self.radius) * ((self.resolution - 1) / (2 * self.radius))
        low = scaled.int().clamp_(0, self.resolution - 2)
        share = (scaled - low).clamp_(0, 1)
        sides = self.resolution - 1
        x, y, z = low.unbind(1)
        cell = self.cell_of.index_select(0, (z * sides + y) * sides + x)
        pair = torch.stack([1 - share, share], 1)  # (n, 2, 3)
        corner = pair[:, :, None, 2] * pair[:, None, :, 1]
        weights = corner[:, :, :, None] * pair[:, None, None, :, 0]
        return cell, weights.reshape(-1, 8)


class BakedViews:
    """Views of a grid, ready to be rendered again and again; see `bake_views`, which makes them.

    Attributes:
        cameras: V of them.
        height: H, pixels.
        width: W, pixels.
        grid: that the samples read.
        hits: (r,) int64, which of the V H W rays meet the region.
        places: (S, r), distances of the samples along the rays.
        lengths: (S, r), of their intervals.
    """

    def __init__(
        self,
        cameras: Cameras,
        size: tuple[int, int],
        grid: Grid,
        hits: Tensor,
        places: Tensor,
        lengths: Tensor,
        cells: Tensor,
        weights: Tensor,
    ) -> None:
        self.cameras, (self.height, self.width), self.grid = cameras, size, grid
        self.hits, self.places, self.lengths = hits, places, lengths
        rows = torch.arange(len(cells) + 1, device=cells.device, dtype=torch.int32) * 8
        self._cells = cells
        self._parts: Parts = (rows, grid.corners.index_select(0, cells).flatten(), weights.flatten())
        self._transposed: Parts | None = None

    def __len__(self) -> int:
        """The number of samples, S r."""
        return len(self._cells)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the matrices and the samples take now."""
        kept = [self.hits, self.places, self.lengths, self._cells, *self._parts, *(self._transposed or ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def matrix(self) -> Tensor:
        """The interpolation, a sparse CSR matrix (S r, N) that shares this object's memory."""
        return _csr(self._parts, (len(self), len(self.grid)))

    def transposed(self) -> Tensor:
        """Its transpose, a sparse CSR matrix (N, S r); it is made at the first call, and kept."""
        if self._transposed is None:
            self._transposed = _transposed(self._cells, self._parts[2].view(-1, 8), self.grid.corners, len(self.grid))
        return _csr(self._transposed, (len(self.grid), len(self)))


def bake_views(
    cameras: Cameras,
    grid: Grid,
    height: int,
    width: int,
    samples: int,
    jitter: Tensor | None = None,
    keep_transpose: bool = False,
) -> BakedViews:
    """Prepare views of a grid, in the precision of the cameras and on their device, where the grid must be too.

    Args:
        cameras: V of them.
        grid: whose region is rendered.
        height: H, pixels.
        width: W, pixels.
        samples: S, along each ray.
        jitter: uniform in [0, 1), (V, H, W, 1) or (V, H, W, S - 1), that moves the samples; see `stratified_edges`.
        keep_transpose: make the transpose now, for views that are used again and again.

    Raises:
        UserError: a camera does not see the region.
    """
    rays = cameras.rays(height, width)
    found = interval(rays, grid.radius, grid.region)
    require_sight(cameras, found.hit, grid.radius)
    hits = found.hit.flatten().nonzero()[:, 0]
    rays = Rays(*(part.reshape(-1, 3).index_select(0, hits) for part in rays))
    near, far = (part.flatten().index_select(0, hits) for part in (found.near, found.far))
    if jitter is not None:
        jitter = jitter.flatten(0, 2).index_select(0, hits)
    edges = volume.stratified_edges(near, far, samples, jitter).t().contiguous()
    places, lengths = (edges[1:] + edges[:-1]) / 2, edges.diff(dim=0)
    points = rays.origins + places[..., None] * rays.directions
    cells, weights = grid.locate(points.view(-1, 3))
    views = BakedViews(cameras, (height, width), grid, hits, places, lengths, cells, weights)
    if keep_transpose:
        views.transposed()
    return views


class BakedRings(Sequence[BakedViews]):
    """A pool of rings of cameras, each prepared once, of which a step takes one.

    A pool of 48 rings of 4 views of 32x32 pixels with 32 samples takes some 670 MB; `nbytes` says how much. Rings that
    are new each step are made by `bake_views`; with the transpose that takes about as long as to render 8 objects
    forward and backward.

    Args:
        rings: the cameras of each ring.
        grid: whose region is rendered.
        height: H, pixels.
        width: W, pixels.
        samples: S, along each ray.
        jitter: for each ring as `bake_views` takes it, or None; it is frozen with the ring.
    """

    def __init__(
        self,
        rings: Sequence[Cameras],
        grid: Grid,
        height: int,
        width: int,
        samples: int,
        jitter: Sequence[Tensor] | None = None,
    ) -> None:
        if not rings or (jitter is not None and len(jitter) != len(rings)):
            raise UserError(
                f"a pool of {len(rings)} rings has {len(jitter or ())} jitters; give one a ring, and a ring"
            )
        moved = jitter if jitter is not None else [None] * len(rings)
        self._rings = [
            bake_views(ring, grid, height, width, samples, one, keep_transpose=True)
            for ring, one in zip(rings, moved, strict=True)
        ]

    def __len__(self) -> int:
        """The number of rings."""
        return len(self._rings)

    def __getitem__(self, which: Any) -> Any:
        """A ring, or a list of rings."""
        return self._rings[which]

    def __iter__(self) -> Iterator[BakedViews]:
        """The rings, one after another."""
        return iter(self._rings)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all rings take."""
        return sum(ring.nbytes for ring in self._rings)


def product(matrix: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """A sparse matrix times a dense one, in the sparse one's precision, into `out` if it is given; no gradient.

    On the CPU, several tables of 8 columns take less than one of all columns.
    """
    made = matrix.new_empty(len(matrix), table.shape[1], layout=torch.strided) if out is None else out
    with torch.autocast(table.device.type, enabled=False):  # there is no sparse product in bfloat16
        return torch.addmm(made, matrix, table.to(matrix.dtype).contiguous(), beta=0, out=made)


def _csr(parts: Parts, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(*parts, size, check_invariants=False)


def _transposed(cells: Tensor, weights: Tensor, corners: Tensor, nodes: int) -> Parts:
    """The transpose of an interpolation, by counting.

    Row m of the transpose holds, corner by corner, the samples of the cell that has node m as that corner. So the
    counts say where the entries of a cell begin, and the order of the sorted cells a sample's place among them.
    """
    count = torch.bincount(cells, minlength=len(corners))
    ordered, order = torch.sort(cells, stable=True)
    rank = torch.arange(len(cells), device=cells.device) - (count.cumsum(0) - count).index_select(0, ordered)
    slots = corners.long() * 8 + torch.arange(8, device=cells.device)  # (C, 8): a node, as a corner
    filled = torch.zeros(nodes * 8, device=cells.device, dtype=torch.int64)
    filled[slots] = count[:, None].expand(-1, 8)
    ends = filled.cumsum(0)
    begins = (ends - filled)[slots]
    places = (begins.index_select(0, ordered) + rank[:, None]).flatten()
    columns = torch.empty(len(places), device=cells.device, dtype=torch.int32)
    columns[places] = order.int()[:, None].expand(-1, 8).reshape(-1)
    values = torch.empty_like(weights).view(-1)
    values[places] = weights.index_select(0, order).view(-1)
    rows = torch.zeros(nodes + 1, device=cells.device, dtype=torch.int32)
    rows[1:] = ends[7::8]
    return rows, columns, values
