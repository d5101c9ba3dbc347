"""What `diffdistill text3d generate` and `render` refuse: one line, exit code 2, and no file that was not asked for."""

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from text3d.command_calls import QUICK, VIEWS, generate, refused, render
from text3d.mesh_fields import Shapes
from text3d.small_model import save_small_model, tiny_presets

from diffdistill.cli.text3d import generate as generate_command
from diffdistill.errors import UserError
from diffdistill.text3d import generate_object
from diffdistill.text3d.model import TextTo3DModel

pytest.importorskip("trimesh")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tiny_presets():
        yield save_small_model(tmp_path_factory.mktemp("model"))


BAD = [
    (("--prompt", "mugg"), "does not know the word 'mugg' of the prompt 'mugg'; did you mean 'mug'?"),
    (("--prompt", "red blue mug"), "has 3 words; the model takes 2 at most"),
    (("--prompt", "a the"), "has no word"),
    (("--prompt", " "), "--prompt is empty"),
    (("--prompt", "mug", "--n", "0"), "--n is 0"),
    (("--prompt", "mug", "--n", "2", "-o", "OUT/"), "2 objects of the prompt 'mug' are asked for; this model takes no"),
    (
        ("--prompt", "a mug", "--prompt", "MUG!", "-o", "OUT/"),
        "2 objects of the prompt 'a mug' or 'MUG!' are asked for",
    ),
    (("--prompt", "mug", "-o", "OUT/" + "m" * 300 + ".glb"), "File name too long"),
    (("--prompt", "mug", "--turntable", "OUT/a.gif", "--fps", "0.001"), "--fps is 0.001; it must be from 0.01 to 50"),
    (("--prompt", "mug", "--device", "meta"), "the device 'meta' cannot be used"),
    (("--prompt", "mug", "--prompt", "tree"), "is one file, and there are 2 objects"),
    (("--prompt", "mug", "--seed", "-1"), "--seed is -1"),
    (("--prompt", "mug", "-o", "OUT/mug.stl"), "ends in .stl; it must end in .glb, .ply, .obj"),
    (("--prompt", "mug", "-o", "OUT/m.ply", "--texture", "64"), "--texture is for .glb and .obj"),
    (("--prompt", "mug", "--texture", "3"), "the texture's size is 3; it must be in 16 .. 4096"),
    (("--prompt", "mug", "--resolution", "3"), "--resolution is 3"),
    (("--prompt", "mug", "--faces", "2"), "--faces is 2"),
    (("--prompt", "mug", "--format", "ply"), "--format is for a folder"),
    (("--prompt", "mug", "--views", "2"), "--views is for --turntable"),
    (("--prompt", "mug", "--page", "OUT/page.pdf"), "page.pdf ends in .pdf; it must end in .html"),
    (("--prompt", "mug", "--turntable", "OUT/a.jpg"), "a.jpg ends in .jpg; it must end in .png, .gif, .mp4"),
    (("--prompt", "mug", "--turntable", "OUT/a.png", "--size", "9999"), "--size is 9999"),
    (("--prompt", "mug", "--turntable", "OUT/a.png", "--fps", "9"), "--fps is for a .gif or .mp4"),
    (("--prompt", "mug", "-o", "OUT/a.obj", "--texture", "64", "--turntable", "OUT/a.png"), "would be written twice"),
    (("--prompt", "mug", "--model", "no/such/folder"), "no text-to-3D model at no/such/folder"),
    (("--prompt", "mug", "--device", "magic"), "the device 'magic' cannot be used"),
    (("--prompts", "no/such.txt"), "no/such.txt"),
    (("--promt", "mug"), "unknown option --promt"),
]


@pytest.mark.parametrize(("argv", "said"), BAD)
def test_bad_input_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    given = [part.replace("OUT", str(tmp_path)) for part in argv]
    needed = ["--prompt", "mug"] if "--promt" in argv else []
    assert said in refused(capsys, "generate", "--model", model, "-o", tmp_path / "mug.glb", *needed, *given)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_ended_is_no_failed_object(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*args: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("diffdistill.cli.text3d.generate.say", ended)
    with pytest.raises(BrokenPipeError):  # which `guard` turns into exit code 141
        generate_command.main(["--model", model, "--prompt", "mug", "-o", str(tmp_path / "mug.glb"), *QUICK])
    assert "error" not in capsys.readouterr().err and (tmp_path / "mug.glb").is_file()


def test_a_dangling_link_is_not_replaced(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mug.glb").symlink_to(tmp_path / "nowhere.glb")
    said = refused(capsys, "generate", "--model", model, "--prompt", "mug", "-o", tmp_path / "mug.glb")
    assert "mug.glb is there already" in said and (tmp_path / "mug.glb").is_symlink()


def test_the_default_model_says_where_it_should_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffdistill.cli.paths.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in ("generate", "render"):
        said = refused(capsys, command, "--prompt", "mug", "-o", "x/")
        assert "no text-to-3D model at assets/text3d: this folder, the default, is not there" in said


def test_objects_that_diverged_or_are_empty(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_all(distance: float) -> None:
        """From now on, all that the model makes has the same signed distance everywhere."""
        field = Shapes([lambda points: torch.full(points.shape[:-1], distance)], radius=2.0)
        monkeypatch.setattr(TextTo3DModel, "forward", lambda *_: field)

    argv = ("--model", model, "--prompt", "mug", "-o", tmp_path / "mug.glb", "--page", tmp_path / "page.html")
    for distance, said in (
        (float("nan"), "'mug': the signed distance is NaN or infinite at 32768 of 32768 points"),
        (9.0, "'mug': no surface: the least signed distance is 9"),
        (-9.0, "'mug': no surface: the largest signed distance is -9"),
    ):
        make_all(distance)
        assert said in refused(capsys, "generate", *argv)
    seen = ("--prompt", "tree", "-o", tmp_path / "x.png", *VIEWS)
    make_all(float("nan"))
    assert "'tree': the field is NaN or infinite" in refused(capsys, "render", "--model", model, *seen)
    assert list(tmp_path.iterdir()) == []
    make_all(9.0)
    assert render(model, *seen) == 0
    assert "nothing is seen of 'tree'" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "x.png")).min() == 255


def test_one_that_fails_does_not_stop_the_others(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(model: object, prompt: str, *rest: object) -> object:
        if prompt == "tree":
            raise UserError("'tree': no surface")
        return generate_object(model, prompt, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("diffdistill.text3d.objects.generate_object", some)
    prompts = [part for prompt in ("mug", "tree", "house") for part in ("--prompt", prompt)]
    assert generate(model, *prompts, "-o", tmp_path / "o", "--page", tmp_path / "p.html") == 2
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "diffdistill: error: 'tree': no surface",
        "diffdistill: error: 1 of 3 objects failed",
    ]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["house.glb", "mug.glb"]
    assert (tmp_path / "p.html").read_text().count("<figcaption>") == 2


@pytest.mark.parametrize("package", ["trimesh", "skimage.measure", "xatlas", "fast_simplification"])
def test_a_missing_package_names_the_extra(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    argv = ("--model", model, "--prompt", "mug", "-o", tmp_path / "mug.glb", "--texture", "64")
    assert f"meshes need {package}" in (said := refused(capsys, "generate", *argv))
    assert "pip install 'diffdistill[text3d]'" in said and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    argv = ("--model", model, "--prompt", "mug", "-o", tmp_path / "mug.glb")
    assert refused(capsys, "generate", *argv).endswith("cannot be written: No space left on device")
    assert "No space left" in refused(capsys, "render", *argv[:-1], tmp_path / "mug.png", *VIEWS)
    assert list(tmp_path.iterdir()) == []


def test_a_film_without_ffmpeg_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    argv = ("--model", "none", "--prompt", "mug", "-o", tmp_path / "mug.mp4")
    assert "needs the program ffmpeg" in refused(capsys, "render", *argv)


def test_nothing_is_overwritten_unasked(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All outputs are looked at before any work: the model is not there, and that is not what is said."""
    names = ("mug.glb", "page.html", "strip.png")
    for name in names:
        (tmp_path / name).write_text("mine")
        out, page, strip = (tmp_path / (each if each == name else f"new-{each}") for each in names)
        argv = ("--prompt", "mug", "-o", out, "--page", page, "--turntable", strip)
        assert f"{name} is there already" in refused(capsys, "generate", "--model", "none", *argv)
    assert all((tmp_path / name).read_text() == "mine" for name in names) and len(list(tmp_path.iterdir())) == 3
    argv = ("--prompt", "mug", "-o", tmp_path / names[0], "--page", tmp_path / names[1], "--overwrite")
    assert generate(model, *argv, "--turntable", tmp_path / names[2], *VIEWS) == 0
    assert all(path.read_bytes() != b"mine" for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 3
