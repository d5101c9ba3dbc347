"""Marching cubes on fields whose volumes, areas and colours are known; all meshes are closed and face outward."""

import sys
from math import pi

import numpy as np
import pytest
import torch
from text3d.mesh_fields import Shapes, ball, box, marked, smooth, torus, union

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.clean import face_components
from diffdistill.text3d.mesh.extract import ExtractSettings, extract_mesh, extract_meshes, mesh_from_grid
from diffdistill.text3d.mesh.triangles import EmptyMeshError, Mesh, face_areas, vertex_normals, volume

for package in ("skimage.measure", "scipy.sparse"):
    pytest.importorskip(package)

SMALL = ExtractSettings(resolution=48, coarse=0)


def is_closed(mesh: Mesh) -> bool:
    """Whether each edge of a face is once an edge of another face in the other direction."""
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).astype(np.int64)
    there = np.sort(edges[:, 0] << 32 | edges[:, 1])
    back = np.sort(edges[:, 1] << 32 | edges[:, 0])
    return len(np.unique(there)) == len(there) and np.array_equal(there, back)


def volume_of(mesh: Mesh) -> float:
    return volume(mesh.vertices, mesh.faces)


def area_of(mesh: Mesh) -> float:
    return float(face_areas(mesh.vertices, mesh.faces).sum())


def test_a_ball_has_the_volume_the_area_and_the_normals_of_a_ball() -> None:
    r, centre = 0.5, np.array([0.2, -0.1, 0.15])
    mesh = extract_mesh(Shapes([ball(r, centre.tolist())]), settings=SMALL)
    assert is_closed(mesh)
    away = mesh.vertices - centre
    spacing = 2 / 47
    # a vertex is on a chord of the true distance between samples, whose error is at most spacing^2 / 8 r
    assert np.abs(np.linalg.norm(away, axis=1) - r).max() < spacing**2 / (8 * r) * 1.5
    assert volume_of(mesh) == pytest.approx(4 / 3 * pi * r**3, rel=5e-3)
    assert area_of(mesh) == pytest.approx(4 * pi * r**2, rel=5e-3)
    normals = vertex_normals(mesh.vertices, mesh.faces)
    assert ((normals * away).sum(1) / r).min() > 0.98  # they point outward


def test_twice_the_resolution_leaves_a_quarter_of_the_error() -> None:
    exact = 2 * pi**2 * 0.55 * 0.2**2
    errors = [exact - volume_of(extract_mesh(Shapes([torus()]), 0, ExtractSettings(n, 0))) for n in (32, 63)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_a_box_between_samples_and_one_with_its_sides_on_them() -> None:
    for side in (0.5, 0.4):  # of 41 samples, at -1, -0.95 .. 1, both are; moved by a third of the spacing, none is
        for moved in (0.0, 0.05 / 3):
            mesh = extract_mesh(Shapes([box((side, 0.3, 0.6), (moved,) * 3)]), 0, ExtractSettings(41, 0))
            assert is_closed(mesh)
            low, high = mesh.vertices.min(0), mesh.vertices.max(0)
            assert np.allclose(high - low, [2 * side, 0.6, 1.2], atol=2e-3)
            lost = side * 0.3 * 0.6 * 8 - volume_of(mesh)  # edges are cut off, by at most half a cell's square
            assert 0 < lost < 0.05**2 / 2 * 8 * (side + 0.3 + 0.6)
            assert face_areas(mesh.vertices, mesh.faces).min() > 0


@pytest.mark.parametrize("beyond", [1, 2, 3])
def test_what_the_box_cuts_is_closed_by_its_sides(beyond: int) -> None:
    """A ball around a side's centre, an edge's, and a corner: a half, a quarter and an eighth of it are left."""
    centre = [1.0] * beyond + [0.0] * (3 - beyond)
    for settings in (ExtractSettings(48, 0), ExtractSettings(48, 16)):
        mesh = extract_mesh(Shapes([ball(0.6, centre)]), 0, settings)
        assert is_closed(mesh) and np.abs(mesh.vertices).max() == 1
        assert volume_of(mesh) == pytest.approx(4 / 3 * pi * 0.6**3 / 2**beyond, rel=0.01)
        assert face_areas(mesh.vertices, mesh.faces).min() > 0


def test_shapes_that_the_box_cuts_at_random_are_closed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        parts = [ball(rng.uniform(0.3, 0.7), rng.uniform(-1, 1, 3).tolist()) for _ in range(3)]
        mesh = extract_mesh(Shapes([union(*parts)]), 0, ExtractSettings(20, 0, speck=0))
        points = torch.tensor(rng.uniform(-1, 1, (20000, 3)), dtype=torch.float32)
        share = (union(*parts)(points) < 0).float().mean().item()
        assert is_closed(mesh) and volume_of(mesh) == pytest.approx(8 * share, rel=0.06)


def test_grids_of_other_shapes_and_boxes_are_in_world_coordinates() -> None:
    low, high = (-0.4, 1.0, -3.0), (0.8, 1.9, -1.0)
    axes = [np.linspace(a, b, n) for a, b, n in zip(low, high, (40, 30, 50), strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    centre, r = np.array([0.2, 1.45, -2.1]), 0.35
    mesh = mesh_from_grid(np.linalg.norm(points - centre, axis=-1) - r, lambda p: p * 0 + 0.25, low, high)
    assert np.abs(np.linalg.norm(mesh.vertices - centre, axis=1) - r).max() < 2e-3
    assert is_closed(mesh) and volume_of(mesh) == pytest.approx(4 / 3 * pi * r**3, rel=0.01)
    assert (mesh.colours == 0.25).all()


def test_colours_are_those_of_the_field_at_the_vertices() -> None:
    field = Shapes([ball(), torus()], [marked, smooth])
    for index, colour in enumerate((marked, smooth)):
        mesh = extract_mesh(field, index, SMALL)
        assert np.array_equal(mesh.colours, colour(torch.tensor(mesh.vertices)).numpy())


def test_all_objects_at_once_are_those_made_one_by_one_in_portions_of_any_size() -> None:
    shapes = [ball(0.3, (0.5, 0.5, 0.2)), torus(), box((0.1, 0.6, 0.2))]
    field = Shapes(shapes, [smooth, marked, smooth])
    settings = ExtractSettings(resolution=30, coarse=12)
    together = extract_meshes(field, settings)
    for index, mesh in enumerate(together):
        assert isinstance(mesh, Mesh)
        portions = ExtractSettings(resolution=30, coarse=12, points_at_once=777)
        for other in (extract_mesh(field, index, settings), extract_mesh(field, index, portions)):
            assert np.array_equal(mesh.faces, other.faces)
            assert np.abs(mesh.vertices - other.vertices).max() < 1e-6
            assert np.abs(mesh.colours - other.colours).max() < 1e-5


def test_a_first_pass_spends_the_samples_where_the_object_is() -> None:
    r, centre = 0.2, np.array([-0.6, 0.5, 0.1])
    errors = {}
    for coarse in (0, 16):
        field = Shapes([ball(r, centre.tolist())])
        mesh = extract_mesh(field, 0, ExtractSettings(32, coarse))
        errors[coarse] = np.abs(np.linalg.norm(mesh.vertices - centre, axis=1) - r).max()
        assert is_closed(mesh) and field.asked <= 32**3 + coarse**3 + len(mesh.vertices)
    assert errors[16] < errors[0] / 4  # the box is less than half as wide


def test_what_the_first_pass_missed_and_its_box_cuts_is_made_from_the_whole_box() -> None:
    def rod(points: torch.Tensor) -> torch.Tensor:  # no distance: steep, so a coarse sample near it does not see it
        return 50 * (torch.hypot(points[..., 1] - 0.5, points[..., 2] - 0.5) - 0.03)

    assert np.abs(np.linspace(-1, 1, 8) - 0.5).min() > 0.07  # the samples of the first pass
    field = Shapes([union(ball(0.5), rod)])
    mesh = extract_mesh(field, 0, ExtractSettings(101, 8, speck=0))
    assert mesh.vertices[:, 0].min() == -1 and mesh.vertices[:, 0].max() == 1 and is_closed(mesh)


def test_no_surface_is_an_error_that_says_why_and_leaves_other_objects_alone() -> None:
    field = Shapes([ball(0.3), lambda points: points[..., 0] * 0 + 0.25, lambda points: points[..., 0] * 0 - 2])
    for settings in (SMALL, ExtractSettings(20, 8)):
        with pytest.raises(EmptyMeshError, match="object 1: no surface: the least .* is 0.25, so nothing is inside"):
            extract_mesh(field, 1, settings)
        with pytest.raises(EmptyMeshError, match="object 2: no surface: the largest .* is -2, so all is inside"):
            extract_mesh(field, 2, settings)
        made = extract_meshes(field, settings)
        assert [type(one) for one in made] == [Mesh, EmptyMeshError, EmptyMeshError]
    assert issubclass(EmptyMeshError, UserError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named_with_their_place(value: float) -> None:
    def broken(points: torch.Tensor) -> torch.Tensor:
        return torch.where((points - torch.tensor([1.0, -1.0, 1.0])).norm(dim=-1) < 0.01, value, ball()(points))

    for coarse in (0, 8):
        said = r"object 0: the signed distance is NaN or infinite at 1 of \d+ points, the first at \(1, -1, 1\)"
        with pytest.raises(UserError, match=said) as caught:
            extract_mesh(Shapes([broken]), 0, ExtractSettings(16, coarse))
        assert not isinstance(caught.value, EmptyMeshError)
    with pytest.raises(UserError, match="object 0: the colour is NaN or infinite at .* points; the field diverged"):
        extract_mesh(Shapes([ball()], [lambda points: points * value]), 0, ExtractSettings(16, 0))


def test_small_parts_are_dropped_and_large_ones_kept() -> None:
    parts = [ball(0.4, (-0.4, 0, 0)), ball(0.2, (0.5, 0, 0)), ball(0.025, (0.5, 0.5, 0.5))]
    field = Shapes([union(*parts)])

    def counted(**settings: float | bool) -> int:
        mesh = extract_mesh(field, 0, ExtractSettings(96, 0, **settings))  # type: ignore[arg-type]
        assert is_closed(mesh) and len(np.unique(mesh.faces)) == len(mesh.vertices)
        return len(np.unique(face_components(len(mesh.vertices), mesh.faces)))

    # areas are to each other as 1, 0.25 and 0.004
    assert [counted(speck=0.0), counted(), counted(speck=0.3), counted(largest_component=True)] == [3, 2, 1, 1]


def test_hollows_belong_to_the_volume_and_go_with_other_parts() -> None:
    field = Shapes([lambda points: torch.maximum(ball(0.7)(points), -ball(0.4)(points))])
    whole, filled = (extract_mesh(field, 0, ExtractSettings(64, 0, largest_component=only)) for only in (False, True))
    assert volume_of(whole) == pytest.approx(4 / 3 * pi * (0.7**3 - 0.4**3), rel=0.01)
    assert volume_of(filled) == pytest.approx(4 / 3 * pi * 0.7**3, rel=0.01)


def test_faces_are_made_fewer_and_stay_closed() -> None:
    pytest.importorskip("fast_simplification")
    field = Shapes([torus()])
    full = extract_mesh(field, 0, SMALL)
    for most in (2000, 300):
        mesh = extract_mesh(field, 0, ExtractSettings(48, 0, faces=most))
        assert len(mesh.faces) <= most and is_closed(mesh)
        assert volume_of(mesh) == pytest.approx(volume_of(full), rel=0.05)
        assert np.array_equal(mesh.colours, smooth(torch.tensor(mesh.vertices)).numpy())
    assert len(extract_mesh(field, 0, ExtractSettings(48, 0, faces=10**6)).faces) == len(full.faces)


def test_packages_that_are_missing_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(UserError, match=r"meshes need fast_simplification .*pip install 'diffdistill\[text3d\]'"):
        extract_mesh(Shapes([ball()]), 0, ExtractSettings(24, 0, faces=100))
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(UserError, match=r"meshes need skimage.measure .*pip install 'diffdistill\[text3d\]'"):
        extract_mesh(Shapes([ball()]), 0, SMALL)


def test_wrong_arguments_are_refused() -> None:
    for wrong, said in (
        ({"resolution": 3}, "resolution is 3"),
        ({"coarse": 4}, "coarse is 4"),
        ({"speck": 1.0}, "speck is 1"),
        ({"faces": 3}, "faces is 3"),
        ({"points_at_once": 0}, "points_at_once is 0"),
    ):
        with pytest.raises(UserError, match=said):
            ExtractSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="object 2 is asked for; the field has 2"):
        extract_mesh(Shapes([ball(), ball()]), 2)
    with pytest.raises(UserError, match=r"the grid has the shape \(4, 4\)"):
        mesh_from_grid(np.zeros((4, 4)), smooth)
    with pytest.raises(UserError, match="each side must be longer than 0"):
        mesh_from_grid(np.zeros((4, 4, 4)), smooth, (0, 0, 0), (1, 1, 0))
    with pytest.raises(UserError, match=r"gives \(\d+,\) for \d+ points"):
        mesh_from_grid(np.linalg.norm(np.indices((9, 9, 9)) - 4.0, axis=0) - 2, lambda points: points[:, 0])


def test_meshes_check_their_arrays_and_keep_copies() -> None:
    points, faces, colours = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]]), np.full((3, 3), 0.5)
    mesh = Mesh(points, faces, colours)
    points[0] = 9
    assert mesh.vertices[0, 0] == 1 and mesh.faces.dtype == np.int32 and mesh.colours.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        mesh.vertices[0] = 0
    for wrong, said in (
        ((points, faces + 1, colours), r"faces name vertices 1 \.\. 3; there are 3"),
        ((points, faces, colours * 3), r"colours span \[1.5, 1.5\]"),
        ((points * np.nan, faces, colours), "vertices hold 9 numbers that are NaN"),
        ((points, faces, colours[:2]), r"colours have the shape \(2, 3\); it must be \(3, 3\)"),
        ((points, faces * 1.0, colours), "faces are float64"),
    ):
        with pytest.raises(UserError, match=said):
            Mesh(*wrong)
