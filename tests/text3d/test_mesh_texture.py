"""Scan conversion against brute force, textures against the colours they are of, pictures against analytic ones."""

import sys
from math import pi, radians, tan
from pathlib import Path

import numpy as np
import pytest
import torch
from text3d.mesh_fields import Shapes, ball, smooth, torus

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.clean import face_components
from diffdistill.text3d.mesh.export import load_mesh, save_mesh
from diffdistill.text3d.mesh.extract import ExtractSettings, extract_mesh
from diffdistill.text3d.mesh.linear import to_levels
from diffdistill.text3d.mesh.queries import field_colour
from diffdistill.text3d.mesh.rasterise import rasterised, sampled
from diffdistill.text3d.mesh.scan import covered
from diffdistill.text3d.mesh.texture import TextureSettings, baked, textured, unwrapped
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh, face_areas

for package in ("skimage.measure", "xatlas", "trimesh"):
    pytest.importorskip(package)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(((a.astype(np.float64) - b) ** 2).mean()))


def camera(azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """A camera that looks at the origin; azimuth 0 is at +x, +z is up. Angles are in radians."""
    backward = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, distance * backward], 1)
    return pose


def rays(pose: np.ndarray, fov_deg: float, size: int) -> np.ndarray:
    """Unit directions (size, size, 3) through the centres of pixels."""
    place = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(-place, place, indexing="ij")
    wide = tan(radians(fov_deg) / 2)
    made = np.stack([x * wide, y * wide, -np.ones_like(x)], -1) @ pose[:3, :3].T
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


def fine(points: torch.Tensor) -> torch.Tensor:
    """Stripes that are finer than faces are."""
    return 0.5 + 0.5 * torch.sin(points * torch.tensor([40.0, 36.0, 44.0]))


@pytest.fixture(scope="module")
def sphere() -> Mesh:
    return extract_mesh(Shapes([ball(0.8)]), 0, ExtractSettings(40, 0))


@pytest.fixture(scope="module")
def painted(sphere: Mesh) -> TexturedMesh:
    return textured(sphere, smooth, TextureSettings(512))


def test_scan_conversion_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-8, 40, (60, 3, 2))
    corners[0] = [[0, 0], [400, 0], [0, 400]]  # over all of the image
    corners[1] = [[3, 3], [3, 3], [9, 9]]  # of no area
    y, x = np.meshgrid(np.arange(24) + 0.5, np.arange(32) + 0.5, indexing="ij")
    for at_once in (1 << 20, 100, 1):
        found = np.zeros((60, 24, 32), bool)
        for part in covered(corners, 32, 24, at_once):
            assert not found[part.face, part.y, part.x].any()
            found[part.face, part.y, part.x] = True
            assert part.weights.min() >= 0 and np.allclose(part.weights.sum(1), 1)
            at = np.einsum("kc,kcd->kd", part.weights, corners[part.face])
            assert np.abs(at - np.stack([part.x + 0.5, part.y + 0.5], 1)).max() < 1e-9
        for k, (a, b, c) in enumerate(corners):
            sides = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
            inside = (np.min(sides, 0) > 0) | (np.max(sides, 0) < 0)
            assert np.array_equal(found[k], inside)


def test_neighbours_share_each_pixel_with_nobody() -> None:
    """A square cut into triangles at random, with corners on the centres of pixels too: each pixel is covered once."""
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(1)
    on_centres = rng.integers(0, 16, (40, 2)) + 0.5
    points = np.unique(
        np.vstack([[[0, 0], [16, 0], [0, 16], [16, 16]], on_centres, rng.uniform(0, 16, (40, 2))]), axis=0
    )
    faces = spatial.Delaunay(points).simplices
    count = np.zeros((16, 16), int)
    for part in covered(points[faces], 16, 16):
        np.add.at(count, (part.y, part.x), 1)
    assert (count == 1).all()


def test_triangles_laid_flat_are_the_mesh_and_do_not_overlap(sphere: Mesh) -> None:
    settings = TextureSettings(256)
    source, faces, uv = unwrapped(sphere.vertices, sphere.faces, settings)
    assert np.array_equal(source[faces], sphere.faces)
    assert uv.min() >= 0 and uv.max() <= 1
    count = np.zeros((1024, 1024), int)
    for part in covered(uv[faces].astype(np.float64) * 1024, 1024, 1024):
        np.add.at(count, (part.y, part.x), 1)
    assert count.max() == 1 and count.mean() > 0.4
    flat = np.column_stack([uv, np.zeros(len(uv))])
    areas = face_areas(sphere.vertices, sphere.faces)
    density = face_areas(flat, faces) / areas
    density /= np.average(density, weights=areas)
    assert areas[(density > 0.5) & (density < 2)].sum() > 0.9 * areas.sum()  # texels are spread evenly


def test_a_mesh_of_slivers_has_few_charts() -> None:
    """A torus whose vertices lie close to samples: 465 charts if xatlas sees it as it is."""
    mesh = extract_mesh(Shapes([torus(0.6, 0.25)]), 0, ExtractSettings(48, 0))
    source, faces, _ = unwrapped(mesh.vertices, mesh.faces, TextureSettings(256))
    assert len(np.unique(face_components(len(source), faces))) < 40


@pytest.mark.parametrize("size", [128, 512])
def test_a_texture_has_the_colours_of_the_field_everywhere_on_the_surface(sphere: Mesh, size: int) -> None:
    made = textured(sphere, smooth, TextureSettings(size))
    rng = np.random.default_rng(0)
    face = rng.integers(0, len(made.faces), 40000)
    weights = rng.dirichlet([1, 1, 1], 40000)
    weights[::2, 0] = 0  # half of the points are on edges, and some of these are seams
    weights /= weights.sum(1, keepdims=True)
    points = np.einsum("kc,kcd->kd", weights, made.vertices[made.faces[face]])
    uv = np.einsum("kc,kcd->kd", weights, made.uv[made.faces[face]])
    wanted, found = smooth(torch.tensor(points, dtype=torch.float32)).numpy(), sampled(made.texture, uv)
    assert psnr(found, wanted) > {128: 44, 512: 54}[size]
    assert np.abs(found - wanted).max() < {128: 0.08, 512: 0.025}[size]


def test_texels_beyond_seams_are_filled_and_others_have_the_mean() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    uv = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]], np.float32)  # v goes up
    faces = np.array([[0, 1, 2]])

    def red_grows_to_the_right(points: torch.Tensor) -> torch.Tensor:
        return torch.stack([points[:, 0], points[:, 1], points[:, 0] * 0], 1)

    made = baked(vertices, faces, uv, red_grows_to_the_right, TextureSettings(64, padding=3)) / 255
    assert np.abs(made[47, 16] - [0.5 / 32, 0.5 / 32, 0]).max() < 3e-3  # the texel at vertex 0: row 47 is the lowest
    assert np.abs(made[40, 20] - [4.5 / 32, 7.5 / 32, 0]).max() < 3e-3
    assert np.array_equal(made[40, 13:16], made[[40, 40, 40], 16]) and np.array_equal(
        made[48:51, 20], made[[47] * 3, 20]
    )
    rest = made[0, 0]
    assert np.array_equal(made[40, 11], rest) and np.array_equal(made[52, 20], rest)
    assert rest[:2] == pytest.approx(1 / 3, abs=0.02)


def test_a_sphere_is_seen_as_the_disc_and_at_the_depth_that_it_has(sphere: Mesh) -> None:
    r, fov, distance, size = 0.8, 50.0, 2.5, 120
    pose = camera(0.7, 0.4, distance)
    view = rasterised(sphere, pose, fov, size, supersample=2)
    half_angle = np.arcsin(r / distance)
    disc = pi * (np.tan(half_angle) / tan(radians(fov) / 2) * size / 2) ** 2
    assert view.opacity.sum() == pytest.approx(disc, rel=5e-3)
    view = rasterised(sphere, pose, fov, size, supersample=1)
    away = rays(pose, fov, size)
    along = -(away @ pose[:3, 3])
    root = along**2 - distance**2 + r**2
    hit = root > 0
    assert (hit != (view.opacity > 0)).mean() < 2e-3
    both = (root > 0.25) & (view.opacity > 0)  # away from the silhouette
    exact = (along - np.sqrt(root.clip(0))) * -(away @ pose[:3, 2])
    assert np.abs(view.depth - exact)[both].max() < 2e-3  # chords, seen at up to 51 degrees
    assert np.isinf(view.depth[view.opacity == 0]).all()
    assert (view.colour[view.opacity == 0] == 1).all()


def test_the_picture_is_not_mirrored_nor_upside_down() -> None:
    def tiny(centre: tuple[float, float, float]) -> Mesh:
        return extract_mesh(Shapes([ball(0.1, centre)]), 0, ExtractSettings(24, 12))

    for centre, (row, column) in (((0, 0.5, 0), (32, 48)), ((0, 0, 0.5), (16, 32)), ((0, -0.5, -0.5), (48, 16))):
        rows, columns = rasterised(tiny(centre), camera(0, 0, 2), 53.13, 64, 1).opacity.nonzero()  # 2 wide at 2
        assert abs(rows.mean() + 0.5 - row) < 0.5 and abs(columns.mean() + 0.5 - column) < 0.5
    wide = rasterised(tiny((0, 0.5, 0)), camera(0, 0, 2), 53.13, (32, 64), 1, background=(0, 0, 0))
    assert wide.colour.shape == (32, 64, 3) and abs(wide.opacity.nonzero()[1].mean() + 0.5 - 40) < 0.5


def test_what_is_nearer_hides_what_is_behind() -> None:
    """Two balls behind each other, in both orders of their faces."""
    near, far = (extract_mesh(Shapes([ball(0.3, (x, 0, 0))]), 0, ExtractSettings(24, 0)) for x in (0.4, -0.5))
    for first, second in ((near, far), (far, near)):
        vertices = np.vstack([first.vertices, second.vertices])
        faces = np.vstack([first.faces, second.faces + len(first.vertices)])
        red_and_blue = [[1.0, 0, 0] if part is near else [0, 0, 1.0] for part in (first, second)]
        colours = np.repeat(red_and_blue, [len(first.vertices), len(second.vertices)], axis=0)
        view = rasterised(Mesh(vertices, faces, colours), camera(0, 0, 2), 40, 32, 1)
        seen = view.colour[view.opacity > 0]
        assert np.allclose(seen, [1, 0, 0])


def test_perspective_does_not_bend_a_texture() -> None:
    """A slanted square with the colours of its plane: at each pixel the colour is that at the ray's intersection."""
    corners = np.array([[-0.6, -0.6, 0], [0.6, -0.6, 0], [0.6, 0.6, 0], [-0.6, 0.6, 0]], np.float32)
    pose = camera(0.3, 0.35, 1.5)
    mesh = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), corners / 1.2 + [0.5, 0.5, 0])
    view = rasterised(mesh, pose, 60, 64, 1)
    away = rays(pose, 60, 64)
    with np.errstate(divide="ignore"):
        hit = pose[:3, 3] + away * (-pose[2, 3] / away[..., 2:])
    there = view.opacity > 0
    assert there.sum() > 500
    assert np.abs(view.colour[there] - (hit[there] / 1.2 + [0.5, 0.5, 0])).max() < 1e-6
    uv = corners[:, :2] / 1.2 + 0.5
    ramp = np.stack(np.broadcast_arrays((np.arange(256) + 0.5) / 256, (255.5 - np.arange(256)[:, None]) / 256, 0.0), -1)
    normals = np.tile(np.array([0, 0, 1], np.float32), (4, 1))
    on_texture = rasterised(TexturedMesh(corners, mesh.faces, normals, uv, to_levels(ramp)), pose, 60, 64, 1)
    inner = there & (np.abs(hit[..., :2]) < 0.59).all(-1)
    assert np.abs(on_texture.colour[inner] - view.colour[inner]).max() < 3e-3


def test_a_textured_file_looks_like_the_field(tmp_path: Path) -> None:
    """A coarse ball with fine stripes, read from a GLB, against rays that meet the exact ball."""
    r, size, n = 0.8, 96, 3
    field = Shapes([ball(r)], [fine])
    mesh = extract_mesh(field, 0, ExtractSettings(32, 0))
    save_mesh(textured(mesh, field_colour(field), TextureSettings(512)), tmp_path / "ball.glb")
    found = load_mesh(tmp_path / "ball.glb")
    pose = camera(0.9, 0.3, 2.5)
    away = rays(pose, 45, size * n)
    along = -(away @ pose[:3, 3])
    root = along**2 - 2.5**2 + r**2
    hit = pose[:3, 3] + away * (along - np.sqrt(root.clip(0)))[..., None]
    seen = np.where(root[..., None] > 0, fine(torch.tensor(hit, dtype=torch.float32)).numpy(), 1.0)
    wanted = seen.reshape(size, n, size, n, 3).mean((1, 3))
    by_texture, by_vertices = (psnr(rasterised(one, pose, 45, size, n).colour, wanted) for one in (found, mesh))
    assert by_texture > 32 and by_texture > by_vertices + 8


def test_a_tensor_is_a_camera_too(sphere: Mesh) -> None:
    pose = camera(1, 0.2, 3)
    made, again = (rasterised(sphere, c2w, 40, 16) for c2w in (pose, torch.tensor(pose)))
    assert np.array_equal(made.colour, again.colour)


def test_wrong_arguments_are_refused(sphere: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, said in (
        ({"size": 8}, "size is 8"),
        ({"padding": -1}, "padding is -1"),
        ({"points_at_once": 0}, "is 0"),
    ):
        with pytest.raises(UserError, match=said):
            TextureSettings(**wrong)
    with pytest.raises(UserError, match="behind the camera"):
        rasterised(sphere, camera(0, 0, 0.5), 40, 16)
    for fov, size, n, background, said in (
        (180.0, 16, 1, (1, 1, 1), "fov_deg is 180"),
        (40.0, 0, 1, (1, 1, 1), "a picture of 0x0 pixels"),
        (40.0, 16, 0, (1, 1, 1), "supersample 0"),
        (40.0, 16, 1, (2, 1, 1), "background is"),
    ):
        with pytest.raises(UserError, match=said):
            rasterised(sphere, camera(0, 0, 3), fov, size, n, background)
    with pytest.raises(UserError, match=r"shape \(3, 3\)"):
        rasterised(sphere, np.eye(3), 40, 16)
    with pytest.raises(UserError, match="the colour is NaN or infinite at"):
        textured(sphere, lambda points: points / 0, TextureSettings(64))
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(UserError, match=r"meshes need xatlas .*pip install 'diffdistill\[text3d\]'"):
        textured(sphere, smooth)
