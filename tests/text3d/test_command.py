"""`diffdistill text3d generate` and `render`: files hold the objects that the model makes of the prompts."""

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from text3d.command_calls import RING, VIEWS, generate, refused, render, said_of
from text3d.small_model import VOXELS, save_small_model, tiny_presets

from diffdistill.cli.text3d.wanted import names_of
from diffdistill.text3d import (
    ExtractSettings,
    ObjectSettings,
    field_pictures,
    generate_field,
    generate_object,
    load_mesh,
    load_text_to_3d,
    mesh_pictures,
)

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")
LIKE_QUICK = ObjectSettings(ExtractSettings(resolution=20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tiny_presets():
        yield save_small_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("ending", ["glb", "ply", "obj"])
def test_a_file_reloads_as_the_object(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    """The same vertices, faces and colours of the field; and so in trimesh, turned to the axes of the format."""
    path = tmp_path / "new" / f"mug.{ending}"
    assert generate(model, "--prompt", "a red mug", "-o", path, "--json") == 0
    (said,) = said_of(capsys)
    loaded = load_text_to_3d(model)
    wanted = generate_object(loaded, "a red mug", 0, LIKE_QUICK).mesh
    mesh = load_mesh(path)
    np.testing.assert_allclose(mesh.vertices, wanted.vertices, atol=1e-6)
    assert np.array_equal(mesh.faces, wanted.faces)
    with torch.no_grad():
        colours = generate_field(loaded, ["a red mug"])(torch.tensor(mesh.vertices)[None]).colour[0].numpy()
    np.testing.assert_allclose(mesh.colours, colours, atol=1e-4 if ending == "glb" else 0.6 / 255)
    theirs = trimesh.load(path, force="mesh", process=False, maintain_order=True)
    axes = [0, 1, 2] if ending == "ply" else [2, 0, 1]
    np.testing.assert_allclose(theirs.vertices[:, axes], wanted.vertices, atol=1e-6)
    assert (said["vertices"], said["faces"]) == (len(theirs.vertices), len(theirs.faces))
    assert said["watertight"] is theirs.is_watertight is True
    assert said["bytes"] == path.stat().st_size and said["file"] == str(path) and said["prompt"] == "a red mug"
    assert 0 < float(str(said["seconds"])) < 60


def test_a_folder_a_page_and_a_turntable(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a red mug\n\ngreen house\n")
    out, page, strip = tmp_path / "objects", tmp_path / "page.html", tmp_path / "strip.png"
    argv = ("--prompts", tmp_path / "prompts.txt", "-o", out, "--page", page, "--turntable", strip, *VIEWS, "--json")
    assert generate(model, *argv) == 0
    files = [out / "a-red-mug.glb", out / "green-house.glb"]
    said = said_of(capsys)
    assert [row["file"] for row in said] == [str(path) for path in (*files, page, strip)]
    assert sorted(path.name for path in out.iterdir()) == ["a-red-mug.glb", "green-house.glb"]
    inside = re.findall(r"base64,([\w+/=]+)\"", page.read_text(encoding="utf-8"))
    assert [base64.b64decode(data) for data in inside] == [path.read_bytes() for path in files]
    rows = [np.hstack(list(mesh_pictures(load_mesh(path), RING, radius=2.0))) for path in files]
    assert np.abs(np.asarray(Image.open(strip)).astype(int) - np.vstack(rows)).max() <= 1  # colours are read back
    assert generate(model, "--prompt", "tree", "-o", f"{tmp_path / 'x'}/", "--format", "ply") == 0
    assert (tmp_path / "x" / "tree.ply").is_file()
    assert re.search(r"tree\.ply  [\d,]+ vertices  [\d,]+ faces  watertight  [\d.]+ s$", capsys.readouterr().out)


def test_turning_pictures_have_the_rate_and_the_size(model: str, tmp_path: Path) -> None:
    path = tmp_path / "turn.gif"
    argv = ("--prompt", "tree", "-o", tmp_path / "tree.glb", "--turntable", path, *VIEWS, "--fps", "10")
    assert generate(model, *argv) == 0
    with Image.open(path) as gif:
        assert gif.n_frames == 3 and gif.size == (24, 24) and gif.info["duration"] == 100


def test_a_texture_stands_beside_an_obj(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xatlas")
    argv = ("--prompt", "mug", "--texture", "64", "--faces", "400", "--json")
    assert generate(model, *argv, "-o", tmp_path / "m.obj") == 0
    (said,) = said_of(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.mtl", "m.obj", "m.png"]
    assert sorted(str(said["beside"]).split("'")[1::2]) == [str(tmp_path / "m.mtl"), str(tmp_path / "m.png")]
    assert int(str(said["faces"])) <= 400 and said["watertight"]
    assert generate(model, *argv, "-o", tmp_path / "m.glb") == 0
    a, b = load_mesh(tmp_path / "m.obj"), load_mesh(tmp_path / "m.glb")
    assert a.texture.shape == (64, 64, 3) and np.array_equal(a.texture, b.texture)  # type: ignore[union-attr]
    np.testing.assert_allclose(a.vertices, b.vertices, atol=1e-6)
    (tmp_path / "m.obj").unlink()
    said_now = refused(capsys, "generate", "--model", model, *argv[:-1], "-o", tmp_path / "m.obj")
    assert "m.mtl is there already" in said_now or "m.png is there already" in said_now


def test_several_objects_of_a_prompt(model: str, tmp_path: Path) -> None:
    """Object i has the noise of seed SEED + i, whatever else is made."""
    takes_noise = save_small_model(tmp_path / "model", VOXELS)
    assert generate(takes_noise, "--prompt", "mug", "--n", 2, "--seed", 4, "-o", tmp_path / "two") == 0
    first, second = (load_mesh(tmp_path / "two" / f"mug-{k}.glb").vertices for k in (1, 2))
    assert generate(takes_noise, "--prompt", "mug", "--seed", 5, "-o", tmp_path / "one.glb") == 0
    assert np.array_equal(load_mesh(tmp_path / "one.glb").vertices, second)
    assert first.shape != second.shape or np.abs(first - second).max() > 1e-3


def test_rendering_without_a_mesh(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("--prompt", "a red mug", "--prompt", "green house")
    assert render(model, *prompts, *VIEWS, "-o", tmp_path / "strip.png", "--json") == 0
    (said,) = said_of(capsys)
    loaded = load_text_to_3d(model)
    wanted = field_pictures(generate_field(loaded, ["a red mug", "green house"]), loaded.sharpness, RING)
    rows = [np.hstack(list(row)) for row in wanted.pictures]
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert np.array_equal(strip, np.vstack(rows)) and (said["objects"], said["views"]) == (2, 3)
    np.testing.assert_allclose(said["opacity"], wanted.opacity.mean(1), atol=1e-4)
    folder = tmp_path / "views"
    assert render(model, *prompts, *VIEWS, "-o", folder, "--json") == 0
    assert [row["azimuth_deg"] for row in said_of(capsys)] == [0.0, 120.0, -120.0] * 2
    for i, name in enumerate(("a-red-mug", "green-house")):
        for k in range(3):
            assert np.array_equal(np.asarray(Image.open(folder / f"{name}-{k:02d}.png")), wanted.pictures[i, k])
    (folder / "a-red-mug-mine.png").write_bytes(b"kept")
    for name in ("a-red-mug-10.png", "a-red-mug-10.mtl"):  # a texture that another command wrote
        (folder / name).write_bytes(b"kept")
    assert "is there already" in refused(capsys, "render", "--model", model, *prompts, *VIEWS, "-o", folder)
    assert render(model, "--prompt", "a red mug", "--views", 2, "--size", 16, "-o", folder, "--overwrite") == 0
    left = sorted(path.name for path in folder.glob("a-red*png"))
    assert left == [f"a-red-mug-{k}.png" for k in ("00", "01", "10", "mine")]
    assert render(model, "--prompt", "tree", *VIEWS, "-o", tmp_path / "turn.gif") == 0
    with Image.open(tmp_path / "turn.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 80  # 12 a second, in hundredths


def test_names_of_files() -> None:
    assert names_of(["A red mug!", "a tree", "a red mug"]) == ["a-red-mug-1", "a-tree", "a-red-mug-2"]
    assert names_of(["mug", "mug 1", "mug"]) == ["mug-2", "mug-1", "mug-3"]
    assert names_of(["??", "../x/..", "Ä cup", "w" * 90]) == ["object", "x", "ä-cup", "w" * 60]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom diffdistill.cli.main import main\n"
        "for command in ([], ['generate', '--help'], ['render', '--help']):\n"
        "    try:\n        main(['text3d', *command])\n    except SystemExit as stop:\n        assert not stop.code\n"
        "assert not {'torch', 'trimesh', 'numpy', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "generate" in done.stdout and "--turntable" in done.stdout
