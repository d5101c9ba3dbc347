"""Objects and pictures of prompts, from Python: the mesh is the field's surface, and the pictures are the field's."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from text3d.analytic_fields import Spheres
from text3d.mesh_fields import Shapes, ball, torus, union
from text3d.small_model import HYPER, VOXELS, save_small_model, small_model, tiny_presets

from diffdistill.errors import UserError
from diffdistill.text3d import (
    ExtractSettings,
    ObjectSettings,
    Ring,
    TextureSettings,
    field_pictures,
    generate_field,
    generate_object,
    load_text_to_3d,
    mesh_pictures,
    save_turn,
)
from diffdistill.text3d.mesh.extract import extract_mesh
from diffdistill.text3d.objects import is_watertight, takes_noise
from diffdistill.text3d.render import Renderer, RenderSettings

COARSE = ObjectSettings(ExtractSettings(resolution=24))
SMALL = Ring(views=3, size=32, nodes=32)


@pytest.fixture(scope="module", autouse=True)
def presets() -> Iterator[None]:
    with tiny_presets():
        yield


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2) + 1e-12))


def test_an_object_is_the_surface_of_its_own_field() -> None:
    """Of several prompts each field is the one of that prompt alone, and its mesh lies where the field is 0."""
    model, prompts = small_model(), ["a red mug", "tree", "The Blue House"]
    together = generate_field(model, prompts)
    for k, prompt in enumerate(prompts):
        made = generate_object(model, prompt, settings=COARSE)
        points = torch.tensor(made.mesh.vertices)[None]
        with torch.no_grad():
            at = together(points)
        spacing = float(np.ptp(made.mesh.vertices, axis=0).max()) / 22
        assert at.sdf[k].abs().max() < 0.2 * spacing
        np.testing.assert_allclose(made.mesh.colours, at.colour[k].clamp(0, 1).numpy(), atol=2e-5)
        assert made.watertight and made.prompt == prompt and len(made.field) == 1
    colours = [generate_object(model, prompt, settings=COARSE).mesh.colours.mean(0) for prompt in prompts]
    assert min(np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]) > 0.02  # they differ


def test_noise_belongs_to_its_seed() -> None:
    model = small_model(VOXELS)
    points = torch.rand(1, 200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        pair = generate_field(model, ["mug", "mug"], [3, 4]).sdf(points)
        alone = [generate_field(model, ["mug"], [seed]).sdf(points)[0] for seed in (3, 4, 3)]
        zero, plain = (generate_field(model, ["mug"], seeds).sdf(points)[0] for seeds in ([0], None))
    assert torch.equal(zero, plain)
    torch.testing.assert_close(pair, torch.stack(alone[:2]), atol=1e-5, rtol=0)
    assert torch.equal(alone[0], alone[2]) and not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], zero)
    assert takes_noise(model) and not takes_noise(small_model())
    for prompts, seeds, said in (([], None, "no prompts"), (["mug"], [1, 2], "2 seeds and 1 prompts")):
        with pytest.raises(UserError, match=said):
            generate_field(model, prompts, seeds)


def test_pictures_are_those_of_the_plain_renderer() -> None:
    """The oracle asks the field itself at every sample."""
    sizes, middles = torch.tensor([0.5, 0.4]), torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 0.1]])
    field = Spheres(sizes, middles, torch.tensor([[0.8, 0.3, 0.2], [0.2, 0.4, 0.9]]), slope=0.2)
    made = field_pictures(field, 60.0, SMALL)
    plain = Renderer(RenderSettings(samples=64, sharpness=60.0, region="ball", compositing="own"))
    wanted = plain(field, SMALL.cameras(1.0), SMALL.size, SMALL.size)
    pictures = (wanted.colour.movedim(2, -1).clamp(0, 1) * 255).round().numpy()
    assert made.pictures.shape == (2, 3, 32, 32, 3) and made.pictures.dtype == np.uint8
    assert psnr(made.pictures, pictures) > 35
    np.testing.assert_allclose(made.opacity, wanted.opacity.mean((2, 3)).numpy(), atol=5e-3)


def test_pictures_of_a_mesh_are_those_of_its_field_in_a_box_of_any_size() -> None:
    for radius in (1.0, 2.0):
        field = Shapes([ball(0.6 * radius)], radius=radius)
        mesh = extract_mesh(field, 0, ExtractSettings(resolution=40))
        of_mesh = mesh_pictures(mesh, SMALL, radius)
        of_field = field_pictures(field, 300.0 / radius, Ring(3, 32, nodes=64, samples=100)).pictures[0]
        assert of_mesh.shape == of_field.shape and psnr(of_mesh, of_field) > 27
        covered = (of_mesh != 255).any(-1).mean()
        assert 0.25 < covered < 0.31  # a disc whose radius is 0.59 of half the picture has a share of 0.27


def test_the_ring_begins_at_the_front_and_goes_by_the_left() -> None:
    """The front (+x) is green and +y is blue in `marked`; a camera at azimuth 90 is at +y."""
    positions = Ring(views=4, elevation_deg=0).cameras(2.0).positions()
    wanted = 6 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    torch.testing.assert_close(positions, wanted, atol=1e-5, rtol=0)


def test_turns_hold_their_pictures(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 2, 8, 8, 3), np.uint8)
    save_turn(pictures, tmp_path / "a.png")
    strip = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(strip, np.vstack([np.hstack(list(row)) for row in pictures]))
    flat = np.zeros((3, 2, 8, 8, 3), np.uint8)
    flat[0, :, ..., 0] = flat[1, :, ..., 1] = flat[2, :, ..., 2] = 200
    save_turn(flat, tmp_path / "a.gif", fps=10)
    with Image.open(tmp_path / "a.gif") as gif:
        frame = np.asarray(gif.convert("RGB"))
        assert gif.n_frames == 2 or gif.info["duration"] in (100, 200)  # equal frames may be joined
    assert frame.shape == (16, 16, 3)
    for (row, column), colour in {(0, 0): (200, 0, 0), (0, 8): (0, 200, 0), (8, 0): (0, 0, 200)}.items():
        assert np.abs(frame[row : row + 8, column : column + 8].astype(int) - colour).max() <= 12
    assert frame[8:, 8:].min() >= 243
    with pytest.raises(UserError, match="a.jpg ends in .jpg"):
        save_turn(flat, tmp_path / "a.jpg")
    with pytest.raises(UserError, match="is there already"):
        save_turn(flat, tmp_path / "a.png")


def test_watertight_is_what_trimesh_says() -> None:
    trimesh = pytest.importorskip("trimesh")
    whole = extract_mesh(Shapes([union(ball(0.3, (0.4, 0, 0)), torus(0.4, 0.1))]), 0, ExtractSettings(resolution=24))
    faces = whole.faces
    turned = faces.copy()
    turned[0] = turned[0, ::-1]
    for each in (faces, faces[1:], np.concatenate([faces, faces[:1]]), turned, faces[:0]):
        theirs = trimesh.Trimesh(whole.vertices, each, process=False)
        # an empty mesh, and one with a face turned over, are closed for trimesh or only wound wrongly
        wanted = len(each) > 0 and theirs.is_watertight and theirs.is_winding_consistent
        assert is_watertight(each) == bool(wanted)
    assert is_watertight(faces)


def test_a_texture_has_the_colours_of_the_field_and_a_limit_of_faces() -> None:
    pytest.importorskip("xatlas")
    model = small_model()
    how = ObjectSettings(ExtractSettings(resolution=24, faces=600), TextureSettings(size=128))
    made, plain = generate_object(model, "red mug", settings=how), generate_object(model, "red mug", settings=COARSE)
    assert len(made.mesh.faces) <= 600 and made.watertight
    assert psnr(mesh_pictures(made.mesh, SMALL, 2.0), mesh_pictures(plain.mesh, SMALL, 2.0)) > 25


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "export"
    save_small_model(folder)
    (tmp_path / "run" / "a_text_encoder").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / "a_text_encoder" / name).write_text("{}")
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "prior.safetensors").write_bytes(b"x")
    for place, device, said in (
        (tmp_path / "none", "cpu", "there is no text-to-3D model at .*none"),
        (tmp_path / "run", "cpu", "there is one in .*export"),
        (tmp_path / "prior", "cpu", "holds a multi-view prior"),
        (folder, "a machine", "the device 'a machine' cannot be used"),
    ):
        with pytest.raises(UserError, match=said):
            load_text_to_3d(place, device)
    assert load_text_to_3d(folder).name == HYPER
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"sharpness": 1e300}, "sharpness is 1e[+]300; it must be a number above 0, and 100000 at most"),
        ({"vocabulary": config["vocabulary"] | {"longest": 2.5}}, "longest is 2.5; a prompt may have from 1"),
        ({"generator": "triplane"}, "of another shape than the other says"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            load_text_to_3d(folder)


def test_prompts_and_seeds_of_another_type() -> None:
    model = small_model()
    for prompts, seeds, said in (
        ([["mug"]], None, "must be a text"),
        ([5], None, "a prompt is 5"),
        (["mug"], [1.5], "a seed is 1.5"),
    ):
        with pytest.raises(UserError, match=said):
            generate_field(model, prompts, seeds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"views": 0}, "views is 0; it must be in 1 .. 360"),
        ({"size": 8}, "size is 8"),
        ({"elevation_deg": 91.0}, "elevation_deg is 91"),
        ({"elevation_deg": float("nan")}, "elevation_deg is nan"),
    ],
)
def test_rings_out_of_range(given: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Ring(**given)  # type: ignore[arg-type]


def test_a_field_that_diverged_is_refused() -> None:
    field = Shapes([ball(), lambda points: points.sum(-1) * float("nan")])
    with pytest.raises(UserError, match="object 1: the field is NaN or infinite"):
        field_pictures(field, 60.0, SMALL)
