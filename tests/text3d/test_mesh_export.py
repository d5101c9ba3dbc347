"""Files of meshes: what is written comes back, other readers see the same, and axes and colours follow the formats."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text3d.mesh_fields import Shapes, ball, box, marked

from diffdistill.errors import UserError
from diffdistill.text3d.mesh.export import glb_bytes, save_mesh
from diffdistill.text3d.mesh.extract import ExtractSettings, extract_mesh
from diffdistill.text3d.mesh.linear import to_levels, to_linear, to_srgb
from diffdistill.text3d.mesh.read import load_mesh, mesh_of_glb
from diffdistill.text3d.mesh.triangles import Mesh, TexturedMesh, vertex_normals

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage.measure")
LEVEL = 1 / 255


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return extract_mesh(Shapes([ball(0.5, (0.1, 0.2, -0.3))]), 0, ExtractSettings(20, 0))


@pytest.fixture(scope="module")
def painted(mesh: Mesh) -> TexturedMesh:
    rng = np.random.default_rng(0)
    n = len(mesh.vertices)
    texture = rng.integers(0, 256, (24, 40, 3), np.uint8)
    normals = vertex_normals(mesh.vertices, mesh.faces)
    return TexturedMesh(mesh.vertices, mesh.faces, normals, rng.uniform(0, 1, (n, 2)).astype(np.float32), texture)


def tree_of(data: bytes) -> Any:
    """The JSON of a GLB file, by its specification."""
    magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON") and size % 4 == 0
    return json.loads(data[20 : 20 + size])


def attribute(data: bytes, name: str, parts: int) -> np.ndarray:
    """Floats of an attribute of a GLB file."""
    tree = tree_of(data)
    (primitive,) = tree["meshes"][0]["primitives"]
    accessor = tree["accessors"][primitive["attributes"][name]]
    assert accessor["componentType"] == 5126 and accessor["type"] == f"VEC{parts}"
    view = tree["bufferViews"][accessor["bufferView"]]
    (size,) = struct.unpack_from("<I", data, 12)
    start = 28 + size + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    return np.frombuffer(data, "<f4", accessor["count"] * parts, start).reshape(-1, parts)


@pytest.mark.parametrize("ending", ["glb", "obj", "ply"])
def test_colours_of_vertices_come_back(mesh: Mesh, tmp_path: Path, ending: str) -> None:
    (path,) = save_mesh(mesh, tmp_path / "deep" / f"a ball.{ending}")
    found = load_mesh(path)
    assert isinstance(found, Mesh) and np.array_equal(found.faces, mesh.faces)
    assert np.abs(found.vertices - mesh.vertices).max() <= 1e-6
    assert np.abs(found.colours - mesh.colours).max() <= (2e-6 if ending == "glb" else 0.501 * LEVEL)


@pytest.mark.parametrize("ending", ["glb", "obj"])
def test_textures_come_back(painted: TexturedMesh, tmp_path: Path, ending: str) -> None:
    path = save_mesh(painted, tmp_path / f"ball.{ending}")[-1]
    found = load_mesh(path)
    assert isinstance(found, TexturedMesh) and np.array_equal(found.faces, painted.faces)
    assert np.array_equal(found.texture, painted.texture)
    for name in ("vertices", "normals", "uv"):
        assert np.abs(getattr(found, name) - getattr(painted, name)).max() <= 1e-6
    names = {file.name for file in tmp_path.iterdir()}
    assert names == ({"ball.glb"} if ending == "glb" else {"ball.obj", "ball.mtl", "ball.png"})


@pytest.mark.parametrize("ending", ["glb", "obj", "ply"])
def test_another_reader_sees_the_same_triangles(mesh: Mesh, tmp_path: Path, ending: str) -> None:
    (path,) = save_mesh(mesh, tmp_path / f"ball.{ending}")
    scene = trimesh.load_scene(path, process=False)
    (found,) = scene.geometry.values()
    turned = mesh.vertices if ending == "ply" else mesh.vertices[:, [1, 2, 0]]
    assert np.abs(found.vertices - turned).max() <= 1e-6 and np.array_equal(found.faces, mesh.faces)
    assert found.is_watertight and found.volume > 0
    if ending == "glb":  # with a material, trimesh keeps colours as an attribute
        assert np.abs(found.visual.vertex_attributes["color"] - to_linear(mesh.colours)).max() < 1e-7
    else:
        assert np.array_equal(found.visual.vertex_colors[:, :3], to_levels(mesh.colours))


@pytest.mark.parametrize("ending", ["glb", "obj"])
def test_another_reader_sees_the_same_texture(painted: TexturedMesh, tmp_path: Path, ending: str) -> None:
    found = trimesh.load(save_mesh(painted, tmp_path / f"ball.{ending}")[-1], force="mesh", process=False)
    material = found.visual.material
    image = material.baseColorTexture if ending == "glb" else material.image
    assert np.array_equal(np.asarray(image.convert("RGB")), painted.texture)
    assert np.abs(found.visual.uv - painted.uv).max() < 1e-6  # of both, v goes up
    assert np.abs(found.vertices - painted.vertices[:, [1, 2, 0]]).max() <= 1e-6


def test_the_top_is_up_and_the_front_to_plus_z_in_gltf() -> None:
    """A cube that is red at the top (+z), green in front (+x) and blue at +y, which the viewer sees to the right."""
    mesh = extract_mesh(Shapes([box((0.5, 0.5, 0.5))], [marked]), 0, ExtractSettings(24, 0))
    data = glb_bytes(mesh)
    position, colour = attribute(data, "POSITION", 3), attribute(data, "COLOR_0", 3)
    for axis, pure in ((1, [1, 0, 0]), (2, [0, 1, 0]), (0, [0, 0, 1])):
        others = np.delete(position, axis, 1)
        side = (position[:, axis] > 0.49) & (np.abs(others) < 0.4).all(1)
        assert side.sum() > 20 and np.allclose(colour[side], pure)
        opposite = (position[:, axis] < -0.49) & (np.abs(others) < 0.4).all(1)
        assert opposite.sum() > 20 and np.allclose(colour[opposite], to_linear(np.array(0.2)))


def test_gltf_has_linear_colours_smooth_normals_and_no_metal(mesh: Mesh, painted: TexturedMesh) -> None:
    data = glb_bytes(mesh)
    assert np.abs(attribute(data, "COLOR_0", 3) - to_linear(mesh.colours)).max() < 1e-7
    normals = vertex_normals(mesh.vertices, mesh.faces)[:, [1, 2, 0]]
    assert np.abs(attribute(data, "NORMAL", 3) - normals).max() < 1e-6
    for made in (data, glb_bytes(painted)):
        tree = tree_of(made)
        ((primitive,),) = (one["primitives"] for one in tree["meshes"])
        material = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]
        assert material["metallicFactor"] == 0 and material["roughnessFactor"] == 1
        assert not any(name.startswith("_") for name in primitive["attributes"])
        assert ("baseColorTexture" in material) == (made is not data)
    assert glb_bytes(mesh) == data


def test_dark_colours_survive_linear_light() -> None:
    levels = np.arange(256, dtype=np.uint8)
    colours = np.stack([levels, levels[::-1], levels], 1) / 255
    mesh = Mesh(np.random.default_rng(0).normal(size=(256, 3)), np.arange(255).reshape(-1, 3), colours)
    found = mesh_of_glb(glb_bytes(mesh))
    assert isinstance(found, Mesh) and np.array_equal(to_levels(found.colours), to_levels(colours))


def test_srgb_and_linear_light_are_inverse_and_meet_the_standard() -> None:
    c = np.linspace(0, 1, 10001)
    assert np.abs(to_srgb(to_linear(c)) - c).max() < 1e-7
    assert (np.diff(to_linear(c)) > 0).all() and to_linear(np.array([0.0, 1.0])).tolist() == [0, 1]
    # IEC 61966-2-1: 0.5 of sRGB is 21.4 % of light; the two branches meet at 0.04045
    assert to_linear(np.array(0.5)) == pytest.approx(0.2140411)
    assert to_linear(np.array(0.04045)) == pytest.approx(to_linear(np.array(0.0404501)), abs=1e-6)
    assert to_levels(np.array([-0.1, 0.0, 0.498, 1.0, 1.2])).tolist() == [0, 0, 127, 255, 255]


def test_files_that_are_there_are_replaced_only_where_asked(mesh: Mesh, painted: TexturedMesh, tmp_path: Path) -> None:
    (tmp_path / "ball.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="ball.png is there already"):
        save_mesh(painted, tmp_path / "ball.obj")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"mine"]  # nothing else was written
    assert len(save_mesh(painted, tmp_path / "ball.obj", overwrite=True)) == 3
    assert isinstance(load_mesh(tmp_path / "ball.obj"), TexturedMesh)
    (tmp_path / "b.glb").mkdir()
    with pytest.raises(UserError, match="b.glb is a folder"):
        save_mesh(mesh, tmp_path / "b.glb", overwrite=True)


def test_what_cannot_be_written_or_read_is_refused(
    mesh: Mesh, painted: TexturedMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what, name, said in (
        (mesh, "a.stl", "ends in .stl; meshes are written as .glb, .obj or .ply"),
        (mesh, "a", "ends in nothing"),
        (painted, "a.ply", "a mesh with a texture is written as .glb or .obj"),
        (Mesh(np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 3))), "a.glb", "the mesh has no faces"),
    ):
        with pytest.raises(UserError, match=said):
            save_mesh(what, tmp_path / name)
    assert not list(tmp_path.iterdir())
    data = glb_bytes(mesh)
    for wrong in (b"", data[:19], data[: len(data) // 2], b"GLTF" + data[4:], data[:20] + b"!" + data[21:]):
        (tmp_path / "bad.glb").write_bytes(wrong)
        with pytest.raises(UserError, match="bad.glb"):
            load_mesh(tmp_path / "bad.glb")
    deep = b"[" * 100_000
    (tmp_path / "deep.glb").write_bytes(struct.pack("<4sIII4s", b"glTF", 2, 20 + len(deep), len(deep), b"JSON") + deep)
    with pytest.raises(UserError, match="deep.glb"):
        load_mesh(tmp_path / "deep.glb")
    save_mesh(painted, tmp_path / "large.glb")
    monkeypatch.setattr("diffdistill.text3d.mesh.read.MAX_TEXTURE_PIXELS", 9)
    with pytest.raises(UserError, match="large.glb: the texture has .* pixels; at most 9 are read"):
        load_mesh(tmp_path / "large.glb")
    for name, content in (("bad.obj", b"v 0 0"), ("bad.ply", b"ply\nformat ascii 1.0\nelement vertex 3\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_mesh(tmp_path / name)
    with pytest.raises(UserError, match="none.glb is not a file"):
        load_mesh(tmp_path / "none.glb")
    with pytest.raises(UserError, match="meshes are read from .glb, .obj or .ply"):
        load_mesh(Path(__file__))


def test_normals_are_unit_vectors_that_point_outward(mesh: Mesh) -> None:
    normals = vertex_normals(mesh.vertices, mesh.faces)
    assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-6
    outward = mesh.vertices - np.array([0.1, 0.2, -0.3])
    assert ((normals * outward).sum(1) / 0.5).min() > 0.97
    lonely = vertex_normals(np.zeros((4, 3)), np.array([[0, 1, 2]]))
    assert lonely.tolist() == [[0, 0, 1]] * 4
