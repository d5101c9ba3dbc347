"""Sparse products against `grid_sample`, dense matrices and the renderer that asks at every sample."""

import copy

import pytest
import torch
from text3d.analytic_fields import Blobs, Voxels
from torch import Tensor
from torch.nn import functional as F

from diffdistill.errors import UserError
from diffdistill.text3d.background import LearnedBackground
from diffdistill.text3d.baked import Baked, bake, render_baked
from diffdistill.text3d.baked_views import BakedRings, BakedViews, Grid, bake_views
from diffdistill.text3d.camera_ranges import CameraRanges
from diffdistill.text3d.cameras import Cameras, Region
from diffdistill.text3d.render import Renderer, RenderSettings

RANGES = CameraRanges(elevation_deg=(-15.0, 50.0), distance=(3.0, 3.0), fov_deg=(40.0, 40.0))
K = 20.0


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ring(seed: int = 0, dtype: torch.dtype = torch.float64) -> Cameras:
    return RANGES.draw_rings(uniforms(1, 5, seed=seed)).to(dtype)


def blobs(radius: float = 1.0, first: int = 0, count: int = 3) -> Blobs:
    """Smooth objects in a box."""
    widths, middles = torch.tensor([0.4, 0.3, 0.5]).double(), (uniforms(3, 3, seed=7) - 0.5) * 0.4
    some = slice(first, first + count)
    return Blobs(widths[some] * radius, middles[some] * radius, uniforms(3, 3, seed=8)[some], radius, slope=0.2)


def double_grid(resolution: int, radius: float = 1.0, region: Region = "ball") -> Grid:
    return Grid(resolution, radius, region, torch.float64)


@pytest.mark.parametrize("resolution", [2, 5, 12])
def test_a_grid_keeps_the_cells_that_meet_the_ball_and_their_nodes(resolution: int) -> None:
    whole, ball = Grid(resolution, 1.5, "box"), Grid(resolution, 1.5)
    line = torch.linspace(-1.5, 1.5, resolution)
    wanted = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).flip(-1).reshape(-1, 3)  # x fastest
    torch.testing.assert_close(whole.points, wanted)
    assert len(whole.corners) == (resolution - 1) ** 3
    spacing = 3 / (resolution - 1)
    offsets = torch.tensor([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)]) * spacing
    for grid in (whole, ball):
        corners = grid.points[grid.corners.long()]
        torch.testing.assert_close(corners - corners[:, :1], offsets.expand_as(corners))
        assert torch.equal(grid.corners.unique(), torch.arange(len(grid), dtype=torch.int32))
    shares = torch.linspace(0, 1, 9)  # brute force: does any of many points of a cell lie in the ball?
    inner = torch.stack(torch.meshgrid(shares, shares, shares, indexing="ij"), -1).reshape(-1, 3) * spacing
    lowest = whole.points[whole.corners[:, 0].long()]
    met = (lowest[:, None] + inner).norm(dim=-1).amin(1) < 1.5
    assert torch.equal(ball.cell_of >= 0, met)
    assert len(ball) < len(whole) or resolution < 8


@pytest.mark.parametrize("region", ["box", "ball"])
def test_the_matrix_interpolates_as_grid_sample_does(region: Region) -> None:
    grid = Grid(9, 1.5, region)
    cameras = CameraRanges(distance=(4.0, 4.0), fov_deg=(45.0, 45.0)).draw_rings(uniforms(1, 5)).to(torch.float32)
    views = bake_views(cameras, grid, 6, 7, 10, uniforms(4, 6, 7, 9).float())
    assert len(views) == views.places.numel() and views.places.shape == views.lengths.shape == (10, len(views.hits))
    table = torch.randn(9**3, 5, generator=torch.Generator().manual_seed(0))
    cube = table.t().reshape(1, 5, 9, 9, 9)
    rays = [part.reshape(-1, 3)[views.hits] for part in cameras.rays(6, 7)]
    points = rays[0] + views.places[..., None] * rays[1]
    assert (points.norm(dim=-1) < 1.5 + 1e-5).all() if region == "ball" else (points.abs() < 1.5 + 1e-5).all()
    wanted = F.grid_sample(cube, points[None, None] / 1.5, align_corners=True)[0, :, 0].flatten(1).t()
    used = ((grid.points + 1.5) * (8 / 3)).round().long() @ torch.tensor([1, 9, 81])
    found = views.matrix() @ table[used]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(views.transposed().to_dense(), views.matrix().to_dense().t())
    assert views.matrix().col_indices().dtype == views.transposed().crow_indices().dtype == torch.int32
    torch.testing.assert_close(views.matrix().values().sum(), torch.tensor(float(len(views))), rtol=1e-5, atol=0)


def as_voxels(baked: Baked, grid: Grid) -> Voxels:
    """The table of a whole grid as `grid_sample` takes it."""
    table = torch.cat([baked.sdf[None], baked.colour]).permute(2, 0, 1)
    return Voxels(table.unflatten(2, (grid.resolution,) * 3), grid.radius)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_baked_images_are_those_of_dense_sampling_with_their_gradients(dtype: torch.dtype) -> None:
    grid, cameras, size = double_grid(10, 1.0, "box"), ring(dtype=dtype), (7, 8)
    start = Baked(*(part.detach().to(dtype) for part in bake(blobs(), grid)))
    jitter, pull = uniforms(4, *size, 2).to(dtype), uniforms(3, 4, 5, *size, seed=2).to(dtype)
    behind = uniforms(3, 4, 3, seed=3).to(dtype)
    made = []
    for fast in (True, False):
        baked = Baked(*(part.clone().requires_grad_() for part in start))
        if fast:
            views = bake_views(cameras, grid, *size, 12, jitter[..., :1])
            found = render_baked(baked, views, K, behind)
        else:
            render = Renderer(RenderSettings(samples=12, sharpness=K))
            found = render(as_voxels(baked, grid), cameras, *size, background=behind, jitter=jitter)
        parts = torch.cat([found.colour, found.opacity[:, :, None], found.depth[:, :, None]], 2)
        (parts * pull).sum().backward()
        made.append((parts, baked.sdf.grad, baked.colour.grad))
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    for fast_part, dense_part in zip(*made, strict=True):
        assert fast_part is not None and dense_part is not None and dense_part.abs().max() > 0.1
        torch.testing.assert_close(fast_part, dense_part, atol=atol, rtol=1e-5)


def test_gradients_of_sums_are_those_of_finite_differences() -> None:
    grid, pull = double_grid(4), uniforms(2, 4, 5, 3, 3)
    views = bake_views(ring(), grid, 3, 3, 5)

    def loss(sdf: Tensor, colour: Tensor) -> Tensor:
        found = render_baked(Baked(sdf, colour), views, 6.0)
        return (torch.cat([found.colour, found.opacity[:, :, None], found.depth[:, :, None]], 2) * pull).sum()

    given = (uniforms(len(grid), 2) - 0.4, uniforms(3, len(grid), 2, seed=1))
    assert torch.autograd.gradcheck(loss, tuple(part.requires_grad_() for part in given), fast_mode=True)


def test_a_finer_grid_comes_nearer_to_the_field() -> None:
    cameras, field = ring(), blobs(1.3)
    cameras = Cameras(cameras.elevation_deg, cameras.azimuth_deg, cameras.distance * 1.3, cameras.fov_deg)
    wanted = Renderer(RenderSettings(samples=24, sharpness=K, region="ball"))(field, cameras, 8, 8).colour
    errors = []
    for resolution in (8, 16, 32):
        grid = double_grid(resolution, 1.3)
        found = render_baked(bake(field, grid), bake_views(cameras, grid, 8, 8, 24), K).colour
        errors.append(float((found - wanted).abs().mean()))
    assert (
        errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3 and errors[2] < 1e-2
    )  # of second order in the spacing


def test_a_batch_of_objects_is_each_by_itself() -> None:
    grid = double_grid(8)
    views, behind = bake_views(ring(), grid, 6, 6, 8), uniforms(3, 4, 3)
    many = render_baked(bake(blobs(), grid), views, K, behind)
    for p in range(3):
        alone = render_baked(bake(blobs(first=p, count=1), grid), views, K, behind[p : p + 1])
        for one, all_of_them in zip(alone[:3], many[:3], strict=True):
            assert one is not None and all_of_them is not None
            torch.testing.assert_close(one[0], all_of_them[p])


def test_rays_that_miss_show_the_background() -> None:
    grid, cameras = Grid(8), ring(dtype=torch.float32)
    views = bake_views(cameras, grid, 12, 12, 8)
    baked = Baked(torch.full((len(grid), 2), -9.0), torch.full((3, len(grid), 2), 0.25))
    torch.manual_seed(0)
    learned = LearnedBackground()
    found = render_baked(baked, views, K, learned)
    missed = torch.ones(4 * 144, dtype=torch.bool)
    missed[views.hits] = False
    assert 0.2 < float(missed.float().mean()) < 0.8
    wanted = learned(cameras.rays(12, 12).directions).reshape(-1, 3)
    flat = found.colour.movedim(2, -1).reshape(2, -1, 3)
    torch.testing.assert_close(flat[:, missed], wanted[missed].expand(2, -1, -1))
    assert not found.opacity.reshape(2, -1)[:, missed].any() and not found.depth.reshape(2, -1)[:, missed].any()
    through = found.opacity.reshape(2, -1)[:, ~missed] > 0.999
    torch.testing.assert_close(flat[:, ~missed][through], torch.full((int(through.sum()), 3), 0.25), atol=2e-3, rtol=0)


def test_a_pool_gives_what_rings_made_anew_give_and_says_its_size() -> None:
    grid, count = Grid(8), 3
    rings = [ring(seed, torch.float32) for seed in range(count)]
    jitter = [uniforms(4, 6, 6, 1, seed=seed).float() for seed in range(count)]
    pool = BakedRings(rings, grid, 6, 6, 8, jitter)
    assert len(pool) == count and [len(views) for views in pool] == [len(views) for views in pool[:]]
    field = bake(blobs(), grid)
    baked = Baked(field.sdf.float(), field.colour.float())
    for i in range(count):
        fresh = bake_views(rings[i], grid, 6, 6, 8, jitter[i])
        before = fresh.nbytes
        for pooled, new in zip(render_baked(baked, pool[i], K)[:3], render_baked(baked, fresh, K)[:3], strict=True):
            assert pooled is not None and new is not None and torch.equal(pooled, new)
        assert fresh.nbytes == before == bytes_of(fresh)  # without a gradient no transpose is made
        fresh.transposed()
        assert fresh.nbytes == pool[i].nbytes == bytes_of(fresh) > 1.8 * before
    assert pool.nbytes == sum(views.nbytes for views in pool)
    per_sample = pool.nbytes / sum(len(views) for views in pool)
    assert 140 < per_sample < 160
    with pytest.raises(UserError, match="a pool of 0 rings"):
        BakedRings([], grid, 6, 6, 8)


def bytes_of(views: BakedViews) -> int:
    """What the sparse matrices and the rest hold, counted from outside."""
    tensors = [views.hits, views.places, views.lengths, views._cells]
    matrices = [views.matrix()] + ([views.transposed()] if views._transposed is not None else [])
    tensors += [part for matrix in matrices for part in (matrix.crow_indices(), matrix.col_indices(), matrix.values())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_views_can_be_copied_and_used_under_autocast() -> None:
    grid = Grid(8)
    views = bake_views(ring(dtype=torch.float32), grid, 6, 6, 8, keep_transpose=True)
    twin, field = copy.deepcopy(views), bake(blobs(), grid)
    baked = Baked(*(part.float().requires_grad_() for part in field))
    plain = torch.autograd.grad(render_baked(baked, views, K).colour.sum(), baked)
    with torch.autocast("cpu", torch.bfloat16):
        found = render_baked(baked, twin, K).colour
        cast = torch.autograd.grad(found.sum(), baked)
    assert found.dtype == torch.float32
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one, other)
    half = bake(Half(field), grid)
    assert half.sdf.dtype == half.colour.dtype == torch.float32


class Half:
    """A field that answers in bfloat16, as networks under autocast do."""

    radius = 1.0

    def __init__(self, baked: Baked) -> None:
        self.baked = baked

    def __len__(self) -> int:
        return self.baked.sdf.shape[1]

    def sdf(self, points: Tensor) -> Tensor:
        return self.baked.sdf.t().bfloat16()

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.sdf(points), self.baked.colour.permute(2, 1, 0).bfloat16()


def test_grids_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="the grid has 1 nodes along a side"):
        Grid(1)
    with pytest.raises(UserError, match="the region of a grid is 'cube'"):
        Grid(8, region="cube")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the field's box has half-side 1.3, and the grid's 1"):
        bake(blobs(1.3), Grid(8))
    views = bake_views(ring(), Grid(8), 4, 4, 4)
    with pytest.raises(UserError, match="the baked field has .* nodes, and the views' grid"):
        render_baked(bake(blobs(), Grid(9)), views, K)
    blind = Cameras.of([0.0], [0.0], [30.0], [150.0])
    with pytest.raises(UserError, match="camera 0 .* sees nothing"):
        bake_views(blind, Grid(8), 2, 2, 4)
