"""Samplers against loops over cells in float64, and fields against what their definition says."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.fields.axes import points_of_axes
from diffdistill.text3d.fields.dense_levels import DenseLevels, DenseLevelSettings
from diffdistill.text3d.fields.feature_field import FeatureField
from diffdistill.text3d.fields.features import Features
from diffdistill.text3d.fields.hash_grid import HashGrid, HashGridSettings, vertex_rows
from diffdistill.text3d.fields.heads import Heads, HeadSettings, SharedHeads
from diffdistill.text3d.fields.planes import Planes, sample_planes
from diffdistill.text3d.fields.voxels import Voxels, sample_voxels

HASHED = HashGridSettings(levels=5, features=2, log2_table=8, base=4, growth=1.6, start=1.0)  # two levels are dense
DENSE = DenseLevelSettings((2, 3, 5), features=3, start=1.0)
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points_in(count: int, number: int, seed: int = 1, most: float = 1.3) -> Tensor:
    """(count, number, 3) in a box somewhat larger than [-1, 1]^3, with corners of it and its middle."""
    generator = torch.Generator().manual_seed(seed)
    points = (2 * torch.rand(count, number, 3, generator=generator, dtype=torch.float64) - 1) * most
    points[:, 0], points[:, 1], points[:, 2] = 0.0, 1.0, -1.0
    return points


def seeded(kind: type, settings: object) -> torch.nn.Module:
    """A table of features in float64."""
    torch.manual_seed(0)
    return kind(settings).double()


def samplers() -> dict[str, Features]:
    """One of each kind, for three objects."""
    return {
        "hash": seeded(HashGrid, HASHED),  # type: ignore[dict-item]
        "dense": seeded(DenseLevels, DENSE),  # type: ignore[dict-item]
        "planes": Planes(normal(3, 3, 2, 4, 5)),
        "voxels": Voxels(normal(3, 2, 3, 4, 5)),
    }


def at_corners(read: object, position: list[float], ends: bool) -> np.ndarray:
    """Linear interpolation by a loop over the corners of a cell; `read(corner)` gives zero or a vector."""
    total, low = 0.0, [math.floor(p) for p in position]
    for corner in itertools.product((0, 1), repeat=len(position)):
        vertex = [i + c for i, c in zip(low, corner, strict=True)]
        weight = math.prod(1 - abs(p - v) for p, v in zip(position, vertex, strict=True))
        if weight > 0 or not ends:
            total = total + weight * read(tuple(vertex))  # type: ignore[operator]
    return np.asarray(total)


def hashed(x: int, y: int, z: int, rows: int) -> int:
    """The hash of a vertex in arithmetic of unsigned 32 bits, as the paper's code has it."""
    products = [i * prime % 2**32 for i, prime in zip((x, y, z), (1, 2654435761, 805459861), strict=True)]
    return (products[0] ^ products[1] ^ products[2]) % rows


def test_the_hash_grid_is_a_loop_over_corners() -> None:
    grid, points = seeded(HashGrid, HASHED), points_in(2, 12)
    assert grid.sides == (4, 7, 11, 17, 27) and [len(t) for t in grid.tables] == [64, 256, 256, 256, 256]
    found = grid.at(points).detach().numpy()
    for p, n in np.ndindex(2, 12):
        wanted = []
        for side, table in zip(grid.sides, grid.tables, strict=True):
            values = table.detach().numpy()

            def read(v: tuple[int, ...], values: np.ndarray = values, side: int = side) -> np.ndarray:
                dense = v[0] + side * v[1] + side**2 * v[2]
                return values[dense if len(values) == side**3 else hashed(*v, len(values))]

            inside = points[p, n].clamp(-1, 1)
            wanted.append(at_corners(read, [float(c + 1) / 2 * (side - 1) for c in inside], ends=True))
        np.testing.assert_allclose(found[p, n], np.concatenate(wanted), rtol=0, atol=1e-12)


def test_a_level_that_fits_is_dense_and_a_finer_one_shares_rows() -> None:
    assert HashGridSettings(log2_table=9, base=8, growth=1.0, levels=2).rows(8) == 512  # 8^3 just fits
    assert HashGridSettings(log2_table=9, base=9, growth=1.0, levels=2).rows(9) == 512 < 9**3
    vertices = torch.tensor(list(itertools.product(range(8), repeat=3)))
    assert sorted(vertex_rows(vertices, 8, 512).tolist()) == list(range(512))
    finer = torch.tensor(list(itertools.product(range(0, 4096, 293), repeat=3)))
    rows = vertex_rows(finer, 4096, 1 << 10)
    assert rows.tolist() == [hashed(*v, 1 << 10) for v in finer.tolist()]
    used = torch.bincount(rows, minlength=1 << 10)
    assert int(used.max()) > 1 and float((used > 0).double().mean()) > 0.85  # collisions, spread over the table
    settings = HashGridSettings(levels=1, features=2, log2_table=6, base=9, growth=1.0, start=1.0)
    grid = seeded(HashGrid, settings)
    vertices = torch.tensor(list(itertools.product(range(9), repeat=3)))
    values = grid.at((vertices.double() / 4 - 1)[None])[0]
    torch.testing.assert_close(values, grid.tables[0][vertex_rows(vertices, 9, 64)], rtol=0, atol=1e-12)


def test_paper_sizes_of_the_hash_grid() -> None:
    settings = HashGridSettings()
    assert settings.sides[:6] == (16, 24, 34, 49, 71, 102) and settings.sides[-1] == 4098
    assert [settings.rows(s) == s**3 for s in settings.sides] == [True] * 5 + [False] * 11


def test_dense_levels_are_a_loop_over_corners() -> None:
    grid, points = seeded(DenseLevels, DENSE), points_in(2, 12)
    found = grid.at(points).detach().numpy()
    for p, n in np.ndindex(2, 12):
        wanted = []
        for side, level in zip(DENSE.sides, grid.levels, strict=True):
            values = level.detach().numpy()[0]
            position = [float(c + 1) / 2 * (side - 1) for c in points[p, n].clamp(-1, 1)]
            wanted.append(at_corners(lambda v, values=values: values[:, v[2], v[1], v[0]], position, ends=True))
        np.testing.assert_allclose(found[p, n], np.concatenate(wanted), rtol=0, atol=1e-12)


def test_planes_are_loops_over_corners_with_zeros_around() -> None:
    planes, points = normal(2, 3, 2, 4, 5), points_in(2, 12)  # four rows, five columns
    found = sample_planes(planes, points).numpy()
    for p, n in np.ndindex(2, 12):
        x, y, z = points[p, n].tolist()
        wanted = []
        for k, (column, row) in enumerate(((x, y), (x, z), (z, y))):
            values = planes[p, k].numpy()

            def read(v: tuple[int, ...], values: np.ndarray = values) -> np.ndarray:
                return values[:, v[1], v[0]] if 0 <= v[0] < 5 and 0 <= v[1] < 4 else np.zeros(2)

            wanted.append(at_corners(read, [((column + 1) * 5 - 1) / 2, ((row + 1) * 4 - 1) / 2], ends=False))
        np.testing.assert_allclose(found[p, n], np.concatenate(wanted), rtol=0, atol=1e-12)


def test_each_axis_changes_two_of_three_planes() -> None:
    planes = normal(1, 3, 1, 6, 6)
    start = sample_planes(planes, torch.zeros(1, 1, 3))[0, 0]
    for axis, changed in enumerate([[True, True, False], [True, False, True], [False, True, True]]):
        moved = torch.zeros(1, 1, 3)
        moved[..., axis] = 0.4
        assert ((sample_planes(planes, moved)[0, 0] - start).abs() > 1e-6).tolist() == changed


def test_voxels_are_a_loop_over_corners_with_zeros_around() -> None:
    voxels, points = normal(2, 2, 3, 4, 5), points_in(2, 12)
    found = sample_voxels(voxels, points).numpy()
    for p, n in np.ndindex(2, 12):
        values = voxels[p].numpy()

        def read(v: tuple[int, ...], values: np.ndarray = values) -> np.ndarray:
            inside = all(0 <= i < side for i, side in zip(v, (5, 4, 3), strict=True))
            return values[:, v[2], v[1], v[0]] if inside else np.zeros(2)

        position = [((c + 1) * side - 1) / 2 for c, side in zip(points[p, n].tolist(), (5, 4, 3), strict=True)]
        np.testing.assert_allclose(found[p, n], at_corners(read, position, ends=False), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["hash", "dense", "planes", "voxels"])
def test_grids_by_axes_and_shared_points_say_what_points_say(kind: str) -> None:
    features = samplers()[kind]
    x, y, z = (torch.linspace(-1.2, 1.1, n, dtype=torch.float64) for n in (3, 4, 6))
    points = points_of_axes(x, y, z)
    shared, own = features.at(points), features.at(points.expand(3, -1, -1))
    assert own.shape == (3, 72, features.channels) and len(shared) == (1 if kind in ("hash", "dense") else 3)
    for found in (shared, features.on_axes(x, y, z)):
        torch.testing.assert_close(found.expand(3, -1, -1), own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["planes", "voxels"])
def test_objects_do_not_mix(kind: str) -> None:
    points = points_in(3, 7)
    made = {"planes": normal(3, 3, 2, 4, 5), "voxels": normal(3, 2, 3, 4, 5)}[kind]
    of = {"planes": Planes, "voxels": Voxels}[kind]
    whole = of(made)
    for p in range(3):
        alone = of(made[p : p + 1])
        torch.testing.assert_close(whole.at(points)[p], alone.at(points[p : p + 1])[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(whole.at(points[:1])[p], alone.at(points[:1])[0], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="3.* objects|3 boxes"):
        whole.at(points[:2])


@pytest.mark.parametrize("kind", ["hash", "dense"])
def test_gradients_of_tables_and_points_are_those_of_differences(kind: str) -> None:
    settings = HashGridSettings(levels=2, features=1, log2_table=5, base=3, growth=1.5, start=1.0)
    grid = seeded(HashGrid, settings) if kind == "hash" else seeded(DenseLevels, DenseLevelSettings((2, 3), 1))
    points = (torch.rand(1, 4, 3, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    names = [name for name, _ in grid.named_parameters()]

    class Read(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = grid

        def forward(self, points: Tensor) -> Tensor:
            return self.grid.at(points)

    def of(points: Tensor, *tables: Tensor) -> Tensor:
        given = {f"grid.{name}": table for name, table in zip(names, tables, strict=True)}
        return torch.func.functional_call(Read(), given, (points,))

    assert torch.autograd.gradcheck(of, (points, *grid.parameters()))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
def test_heads_are_matrices_of_each_object(joint: bool, hidden: tuple[int, ...]) -> None:
    settings = HeadSettings(hidden=hidden, joint=joint, colour="mipnerf")
    chains = [[normal(3, *shape, seed=i) for i, shape in enumerate(shapes)] for shapes in settings.shapes(5)]
    for features in (normal(1, 4, 5, seed=9), normal(3, 4, 5, seed=9)):
        distance, colour = Heads(settings, chains).both(features)
        torch.testing.assert_close(Heads(settings, chains).distance(features), distance, rtol=0, atol=1e-12)
        for p, n in np.ndindex(3, 4):
            said = []
            for chain in chains:
                x = features[p % len(features), n]
                for i, matrix in enumerate(chain):
                    x = (x.clamp_min(0) if i else x) @ matrix[p]
                said.append(x)
            values = torch.cat(said)
            wanted = (1.002 / (1 + (-values[1:]).exp()) - 0.001).clamp(0, 1)
            torch.testing.assert_close(distance[p, n], values[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(colour[p, n], wanted, rtol=0, atol=1e-12)


def field_of(radius: float = 2.0, sphere: float = 0.8) -> FeatureField:
    """Three objects of voxels."""
    torch.manual_seed(0)
    read = SharedHeads(HeadSettings(sphere=sphere), 2)
    return FeatureField(Voxels(torch.randn(3, 2, 3, 4, 5)), read(), 3, radius, CPU)


def test_a_field_is_its_network_and_a_sphere() -> None:
    field, points = field_of(), points_in(3, 9, most=1.0).float() * 2
    values = field(points)
    assert len(field) == 3 and values.sdf.shape == (3, 9) and values.colour.shape == (3, 9, 3)
    torch.testing.assert_close(field.sdf(points), values.sdf, rtol=0, atol=1e-6)
    said, colour = field.heads.both(sample_voxels(field.features.voxels, points / 2))  # type: ignore[attr-defined]
    torch.testing.assert_close(values.sdf - said, points.norm(dim=-1) - 0.8, rtol=0, atol=1e-6)
    assert torch.equal(values.colour, colour) and colour.min() >= 0 and colour.max() <= 1
    silent = FeatureField(Voxels(torch.zeros(3, 2, 3, 4, 5)), field.heads, 3, 2.0, CPU)
    assert torch.equal(silent.sdf(points), points.norm(dim=-1) - 0.8)
    assert torch.equal(silent(points[:1]).colour, torch.full((3, 9, 3), 0.5))


def test_a_field_by_axes_is_the_field_at_points() -> None:
    field = field_of()
    x, y, z = torch.linspace(-2, 2, 3), torch.linspace(-2, 1, 4), torch.linspace(0, 2, 5)
    at, by_axes = field(points_of_axes(x, y, z)), field.on_axes(x, y, z)
    torch.testing.assert_close(by_axes, at, rtol=0, atol=2e-6)
    torch.testing.assert_close(field.sdf_on_axes(x, y, z), at.sdf, rtol=0, atol=2e-6)


def test_the_gradient_at_the_middle_is_finite() -> None:
    points = torch.zeros(1, 1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(field_of().sdf(points).sum(), points)
    assert gradient.isfinite().all()


def test_autocast_leaves_fields_in_float32() -> None:
    field, points = field_of(), points_in(3, 9).float()
    plain = field(points)
    with torch.autocast("cpu", torch.bfloat16):
        found, alone = field(points), field.sdf(points)
        axes = field.on_axes(*[torch.linspace(-2, 2, 3)] * 3)
    assert found.sdf.dtype == found.colour.dtype == axes.sdf.dtype == torch.float32
    assert torch.equal(found.sdf, plain.sdf) and torch.equal(found.colour, plain.colour)
    torch.testing.assert_close(alone, plain.sdf, rtol=0, atol=1e-6)


def test_points_of_another_shape_are_refused() -> None:
    for shape in ((2, 9, 3), (9, 3), (3, 9, 2)):
        with pytest.raises(ValueError, match=r"they must be \(3, N, 3\), or \(1, N, 3\) for all"):
            field_of()(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"they must be \(P, 3, C, H, W\)"):
        Planes(torch.zeros(1, 2, 4, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HashGridSettings(levels=0), "grid.levels is 0; it must be a whole number from 1 to 32"),
        (lambda: HashGridSettings(levels=32, growth=2.0), "the finest side of the hash grid is 34359738368"),
        (lambda: HashGridSettings(growth=0.5), "grid.growth is 0.5; it must be a number above 0.999"),
        (lambda: DenseLevelSettings(sides=()), "grid.sides is empty"),
        (lambda: DenseLevelSettings(sides=(4, 1)), "grid.sides is 1; it must be a whole number from 2 to 512"),
        (lambda: HeadSettings(hidden=(64, True)), "head.hidden is True"),
        (lambda: HeadSettings(colour="tanh"), r"head.colour is 'tanh'; it must be one of"),  # type: ignore[arg-type]
        (lambda: HeadSettings(sphere=0.0), "head.sphere is 0.0; it must be a number above 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]
