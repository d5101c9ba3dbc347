"""Stored views come back equal, damaged ones are refused by name, and composed pixels are what the parts say."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.text3d.things.catalogue import COLOURS, Prompt, split_of
from diffdistill.text3d.things.models3d import LUMA
from diffdistill.text3d.things.procedural import THINGS
from diffdistill.text3d.things.rendering import RenderSettings, procedural_views
from diffdistill.text3d.things.view_files import ThingViews, most_rings, read_views, views_as_bytes
from diffdistill.text3d.things.viewpoints import reference_views, ring_views
from diffdistill.text3d.things.views import NATURAL, Views, load_views

SCRIPT = Path(__file__).parents[2] / "train" / "things.py"
WHITE, DARK = torch.ones(3), torch.tensor([0.25, 0.5, 0.125])


def made(
    name: str = "mug", kind: str = "shades", size: int = 8, rings: int = 3, seed: int = 0, **more: object
) -> ThingViews:
    """Views of noise, as a file of views has them: no channel is above alpha."""
    generator = torch.Generator().manual_seed(seed)
    channels = {"shades": 3, "colours": 4}[kind]

    def noise(*shape: int) -> Tensor:
        values = torch.randint(0, 256, (*shape, channels, size, size), generator=generator, dtype=torch.uint8)
        alpha = values[..., -1:, :, :] * (torch.rand(size, size, generator=generator) < 0.7)  # some of it is 0
        return torch.cat([values[..., :-1, :, :].minimum(alpha), alpha], -3)

    start = torch.rand(2, rings, generator=generator)
    return ThingViews(name, kind, noise(rings, 4), noise(24), 360 * start[0], 65 * start[1] - 15, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["shades", "colours"])
def test_stored_views_come_back_equal(tmp_path: Path, kind: str) -> None:
    views = made(kind=kind, rings=9, companion=(0.25, 0.5, 1.0), white=0.75, source={"creator": "me", "seed": 3})
    (tmp_path / "mug.npz").write_bytes(views_as_bytes(views))
    found = read_views(tmp_path / "mug.npz")
    for name in ("rings", "references", "azimuth", "elevation"):
        assert torch.equal(getattr(found, name), getattr(views, name)), name
    for name in ("name", "kind", "companion", "white", "source", "size"):
        assert getattr(found, name) == getattr(views, name), name
    assert views_as_bytes(found) == views_as_bytes(views)


def changed(path: Path, **arrays: object) -> Path:
    """A file of views with some of its members put in the place of others."""
    with np.load(io.BytesIO(views_as_bytes(made())), allow_pickle=False) as file:
        members = {name: file[name] for name in file.files}
    record = json.loads(members["record"].tobytes()) | arrays.pop("record", {})  # type: ignore[operator]
    members["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    np.savez(path, **(members | arrays))  # type: ignore[arg-type]
    return path


def test_damaged_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mug.npz"
    whole = views_as_bytes(made())
    for damaged in (b"", b"no zip", whole[: len(whole) // 2], whole[:2000] + bytes(8) + whole[2008:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="mug.npz is no readable file of views"):
            read_views(path)
    azimuth = np.array([0, 1, 2], np.float32)
    with np.load(io.BytesIO(whole)) as file:
        sheet = file["references"]
    for arrays, message in (
        ({"record": {"format": 2}}, "has format 2; this version reads 1"),
        ({"record": {"kind": "other"}}, "is no readable file of views"),
        ({"record": {"kind": "colours"}}, "a sheet is RGB, where RGBA was expected"),
        ({"record": {"size": 1 << 20}}, "states 3 rings of 1048576 pixels"),
        ({"record": {"size": 16}}, "a sheet is of"),
        ({"record": {"white": 0}}, "both are in"),
        ({"azimuth": azimuth * np.nan}, "azimuth must be 3 numbers in"),
        ({"azimuth": azimuth.astype(np.float64)}, "azimuth must be 3 numbers in"),
        ({"elevation": azimuth + 49}, "elevation must be 3 numbers in"),
        ({"azimuth": np.array([{}], object)}, "is no readable file of views"),  # a pickle is not read
        ({"rings": sheet}, "a sheet is of"),
        ({"rings": sheet[:99]}, "is no readable file of views"),
    ):
        with pytest.raises(UserError, match=message) as error:
            read_views(changed(path, **arrays))  # type: ignore[arg-type]
        assert "mug" in str(error.value)
    monkeypatch.setattr("diffdistill.text3d.things.view_files.MAX_BYTES", 1000)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="would unpack to .* bytes; at most 1,000"):
        read_views(path)


def test_views_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="kind is 'form'; it must be shades or colours"):
        ThingViews("mug", "form", *[torch.zeros(1)] * 4)
    views = made()
    with pytest.raises(UserError, match="references are torch.float32"):
        ThingViews("mug", "shades", views.rings, views.references.float(), views.azimuth, views.elevation)
    assert most_rings(64) == 1020
    with pytest.raises(UserError, match="at most 252 rings are kept"):
        blank = torch.zeros(1, dtype=torch.uint8).expand(253, 4, 3, 256, 256)
        ThingViews("mug", "shades", blank, views.references, torch.zeros(253), torch.zeros(253))


def flat(name: str, kind: str, pixel: list[int], **more: object) -> ThingViews:
    """Views whose pixels are all the same."""
    views = torch.tensor(pixel, dtype=torch.uint8)[:, None, None]
    shape = (len(pixel), 8, 8)
    return ThingViews(
        name, kind, views.expand(2, 4, *shape), views.expand(24, *shape), torch.tensor([10.0, 200.0]),
        torch.tensor([5.0, -5.0]), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_composed_colours_are_exact() -> None:
    """Pixels by hand: parts times their colours, and the background through what alpha leaves."""
    second = (0.5, 0.25, 0.125)
    views = Views(
        [
            flat("mug", "shades", [51, 102, 204], companion=second),
            flat("bootie", "colours", [51, 102, 0, 204], white=0.5),
            flat("rock", "colours", [204, 204, 204, 204], white=0.5),
        ]
    )
    prompts = [Prompt("mug", "red"), Prompt("bootie"), Prompt("bootie", "cyan"), Prompt("rock", "pink")]
    which = views.indexes(prompts)
    assert which.tolist() == [[0, 0], [1, NATURAL], [1, 7], [2, 6]]
    batch = views.of_rings(which, torch.tensor([0, 1, 0, 1]), DARK.expand(4, 3))
    luma = (0.2 * LUMA[0] + 0.4 * LUMA[1]) / 0.5
    wanted = torch.stack(
        [
            0.2 * torch.tensor(COLOURS["red"]) + 0.4 * torch.tensor(second) + 0.2 * DARK,
            torch.tensor([0.2, 0.4, 0.0]) + 0.2 * DARK,
            luma * torch.tensor(COLOURS["cyan"]) + 0.2 * DARK,
            0.8 * torch.tensor(COLOURS["pink"]) + 0.2 * DARK,  # above the luma of white: the full colour, no more
        ]
    )
    assert luma < 0.8 and batch.images.shape == (4, 4, 3, 8, 8)
    assert torch.allclose(batch.images, wanted[:, None, :, None, None].expand_as(batch.images), atol=1e-6)
    assert batch.prompts == ["a red mug", "a bootie", "a cyan bootie", "a pink rock"]
    assert batch.camera[1].tolist() == [[200.0, -5.0], [290.0, -5.0], [20.0, -5.0], [110.0, -5.0]]
    assert torch.equal(batch.background, DARK.expand(4, 3))
    references = views.references(which)
    assert references.images.shape == (4, 24, 3, 8, 8)
    assert torch.allclose(references.images[0, 5, :, 0, 0], wanted[0] + 0.2 * (1 - DARK), atol=1e-6)
    assert torch.equal(references.camera[2], torch.stack(reference_views(), -1))
    for prompt, message in (
        (Prompt("mug"), "'a mug' needs a colour"),
        (Prompt("piano", "red"), "there are no views of 'piano'; there are those of mug, bootie, rock"),
    ):
        with pytest.raises(UserError, match=message):
            views.indexes([prompt])


def test_uniform_numbers_say_what_is_drawn() -> None:
    views = Views([made("mug", seed=1), made("car", seed=2)])
    pairs = views.indexes([Prompt("mug", "red"), Prompt("car", "blue"), Prompt("car", "cyan")])
    rows = [[0.0, 0.0, 0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.1, 0.2, 0.3], [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]]
    batch = views.drawn(pairs, torch.tensor(rows))
    assert batch.prompts == ["a red mug", "a blue car", "a cyan car"]
    assert torch.equal(batch.background, torch.tensor([[1.0, 1.0, 1.0], [0.1, 0.2, 0.3], [1.0, 0.0, 1.0]]))
    wanted = views.of_rings(pairs, torch.tensor([0, 1, 2]), batch.background)
    assert torch.equal(batch.images, wanted.images) and torch.equal(batch.camera, wanted.camera)
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    many = views.drawn(pairs, torch.rand(4000, 6, generator=torch.Generator().manual_seed(0)))
    assert abs(float((many.background == 1).all(1).float().mean()) - 0.5) < 0.03
    assert all(abs(many.prompts.count(str(p)) / 4000 - 1 / 3) < 0.03 for p in batch.prompts)
    with pytest.raises(UserError, match=r"uniforms are \(4, 5\); they must be \(B, 6\)"):
        views.drawn(pairs, torch.rand(4, 5))


def test_smaller_views_are_means_of_squares() -> None:
    thing = made("bootie", "colours", size=16)
    small, large = Views([thing], size=8), Views([thing])
    which = large.indexes([Prompt("bootie")])
    pooled = torch.nn.functional.avg_pool2d(large.of_rings(which, torch.tensor([1]), DARK[None]).images[0], 2)
    found = small.of_rings(which, torch.tensor([1]), DARK[None]).images[0]
    assert (found - pooled).abs().max() <= 1.01 / 255  # colours and alpha are rounded to 8 bits
    with pytest.raises(UserError, match="size is 6; it must divide 16"):
        Views([thing], size=6)


def test_folders_are_read_by_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("mug", "car")):
        (tmp_path / f"{name}.npz").write_bytes(views_as_bytes(made(name, seed=seed)))
    assert load_views(tmp_path).names == ("car", "mug") and load_views(tmp_path, ["mug"]).names == ("mug",)
    assert len(load_views(tmp_path, ["mug", "car"])) == 2
    with pytest.raises(UserError, match="holds no chair.npz"):
        load_views(tmp_path, ["chair"])
    with pytest.raises(UserError, match="empty holds no views"):
        load_views(tmp_path / "empty")
    (tmp_path / "chair.npz").write_bytes(views_as_bytes(made("mug")))
    with pytest.raises(UserError, match="chair.npz states that it shows 'mug'"):
        load_views(tmp_path)
    (tmp_path / "chair.npz").write_bytes(views_as_bytes(made("chair", rings=2)))
    with pytest.raises(UserError, match="different numbers of rings, or sizes"):
        load_views(tmp_path)
    with pytest.raises(UserError, match="hold a thing twice"):
        Views([made(), made()])


def test_rendered_views_are_those_of_their_cameras() -> None:
    """A ring that was rendered is found again at the cameras that it states, in colour and before its background."""
    from diffdistill.text3d.things.procedural import mean_instance
    from diffdistill.text3d.things.sphere_tracing import traced_views

    thing = procedural_views("mug", RenderSettings(size=16, instances=2, rings=2, seed=4))
    assert thing.rings.shape == (4, 4, 3, 16, 16) and thing.companion == THINGS["mug"].companion
    assert torch.equal(thing.rings, procedural_views("mug", RenderSettings(16, 2, 2, seed=4)).rings)
    assert not torch.equal(thing.rings, procedural_views("mug", RenderSettings(16, 2, 2, seed=5)).rings)
    at = torch.stack(ring_views(thing.azimuth, thing.elevation), -1)
    assert at.shape == (4, 4, 2)
    for ring, cameras in zip(thing.rings, at, strict=True):  # the instance differs a little; the pose does not
        again = traced_views(THINGS["mug"], mean_instance(), *cameras.unbind(-1), 16, 2)
        other = traced_views(THINGS["mug"], mean_instance(), *(cameras + torch.tensor([60.0, 0])).unbind(-1), 16, 2)
        differences = [(ring / 255 - view).abs().mean() for view in (again, other)]
        assert differences[0] < 0.06 and differences[0] < 0.8 * differences[1]
    with pytest.raises(UserError, match="there is no thing 'piano'"):
        procedural_views("piano", RenderSettings())
    for wrong in ({"size": 12}, {"instances": 0}, {"rings": 1000}, {"supersampling": 9}, {"seed": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            RenderSettings(**wrong)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location("train_things", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "THINGS", {name: THINGS[name] for name in ("ball", "cube", "table")})
    monkeypatch.setattr(sys, "argv", ["things.py", *arguments])
    script.main()


def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, small = tmp_path / "views", ("--size", "8", "--instances", "1", "--rings", "2")
    run(monkeypatch, "--out", str(out), *small)
    first = json.loads(capsys.readouterr().out)
    assert (first["things"], first["kept"], first["views"]) == (3, 0, 3 * 32)
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    assert sorted(whole) == ["ball.npz", "cube.npz", "settings.json", "table.npz"]
    (out / "cube.npz").unlink()
    run(monkeypatch, "--out", str(out), *small)
    assert json.loads(capsys.readouterr().out)["kept"] == 2
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole
    views = load_views(out)
    assert (views.size, views.rings, len(views)) == (8, 2, 3)
    with pytest.raises(UserError, match="was rendered with seed 0, and not 1; take another folder"):
        run(monkeypatch, "--out", str(out), *small, "--seed", "1")
    (out / "cube.npz").write_bytes(whole["ball.npz"])
    with pytest.raises(UserError, match="cube.npz holds views of another thing"):
        run(monkeypatch, "--out", str(out), *small)
    (out / "cube.npz").write_bytes(whole["cube.npz"][:-50])
    with pytest.raises(UserError, match="cube.npz is no readable file of views"):
        run(monkeypatch, "--out", str(out), *small)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other is not empty, and was not made by this script"):
        run(monkeypatch, "--out", str(tmp_path / "other"), *small)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".settings.json.1.tmp").write_text("{")  # of a run that was killed at once
    run(monkeypatch, "--out", str(tmp_path / "killed"), *small)
    with pytest.raises(UserError, match="is a file; name a folder"):
        run(monkeypatch, "--out", str(tmp_path / "other" / "notes.txt"), *small)
    with pytest.raises(UserError, match="--archive and --packages are for --models"):
        run(monkeypatch, "--out", str(tmp_path / "x"), "--archive", "a.sh3f")
    with pytest.raises(UserError, match="a.sh3f is not there"):
        run(monkeypatch, "--out", str(tmp_path / "x"), "--models", "--archive", str(tmp_path / "a.sh3f"))


def test_all_prompts_of_the_split_have_views() -> None:
    views = Views([flat(name, "shades", [9, 9, 99]) for name in THINGS])
    which = views.indexes(split_of().all)
    assert len(which.unique(dim=0)) == 96
    assert views.references(which[:2]).prompts == [str(prompt) for prompt in split_of().all[:2]]
