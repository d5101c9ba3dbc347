"""The code of README.md, docs/python.md, codec.md and text-to-3d.md, run as it stands but for numbers of steps."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_calls import noise

from diffdistill import UserError
from diffdistill.data.save import save_picture
from diffdistill.evaluation.features.mobilenet import _packaged_weights
from diffdistill.text3d import Mesh, load_mesh

ROOT = Path(__file__).parents[1]
SHORTER = {"range(200)": "range(2)"}  # of what is slow on the embedded teacher
weights = _packaged_weights()
pytestmark = pytest.mark.skipif(weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing")


def blocks(page: str = "docs/python.md") -> list[list[str]]:
    """The page's blocks of code; one that is marked as continued runs after the one before it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[list[str]] = []
    for continued, code in re.findall(r"^```python( continued)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if continued:
            found[-1].append(code)
        else:
            found.append([code])
    return found


def run(parts: list[str], shorter: dict[str, str]) -> tuple[dict[str, Any], str]:
    """The names that the code leaves, and what it prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for code in parts:
            for long, short in shorter.items():
                code = code.replace(long, short)
            exec(compile(code, "docs/python.md", "exec"), names)
    return names, out.getvalue()


def block_with(text: str) -> list[str]:
    (found,) = [parts for parts in blocks() if text in parts[0]]
    return found


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's assets, and two folders of images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    noise("generated", 8, 0)
    noise("real", 9, 1)
    return tmp_path


def test_blocks_are_short_and_all_of_them_run_here() -> None:
    shown = ["vsd", "torch.Size", "print(fid(", "evaluate(", "FrechetDistance(", "class Points"]
    assert [block_with(text) for text in shown] == blocks()
    assert len(block_with("vsd")[0].splitlines()) <= 15
    assert len(block_with("print(fid(")[0].splitlines()) <= 5 and len(block_with("evaluate(")[0].splitlines()) <= 5


def test_a_notebook_distils_and_exports(here: Path) -> None:
    from diffdistill import generate, load_teacher

    parts = block_with("vsd")
    assert all(long in parts[0] for long in SHORTER)
    names, _ = run(parts, SHORTER)
    teacher = load_teacher("assets/teacher")
    before = dict(teacher.backbone.named_parameters())
    for model in (names["student"], names["fake"]):
        moved = [not torch.equal(p, before[name]) for name, p in model.network.named_parameters()]
        assert sum(moved) > len(moved) // 2
    assert all(torch.equal(p, before[name]) for name, p in names["teacher"].backbone.named_parameters())
    assert torch.isfinite(names["loss"]) and set(names["logs"]) >= {"grad_rms"}
    (image,) = generate(str(here / "student"), ["a blue apple"], 1, 1.0)
    assert image.shape == (1, 3, 64, 64)


def test_a_student_draws() -> None:
    names, said = run(block_with("torch.Size"), {})
    assert said == "torch.Size([4, 3, 64, 64])\n"
    assert names["images"].min() >= 0 and names["images"].max() <= 1 and names["images"].std() > 0.1


def test_fid_of_two_folders(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """Without the network, the weights that are there, or the line that says how to get them."""
    import urllib.request

    def no_network(*args: Any, **options: Any) -> None:
        raise OSError("no network in a test")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with contextlib.suppress(UserError):
        assert float(run(block_with("print(fid("), {})[1]) > 0
        return
    monkeypatch.setenv("DIFFDISTILL_WEIGHTS", str(here / "weights"))
    with pytest.raises(UserError, match="could not download .*inception"):
        run(block_with("print(fid("), {})


def test_a_distance_that_needs_no_download() -> None:
    names, said = run(block_with("evaluate("), {})
    assert names["report"]["n"] == 8 and names["report"]["n_reference"] == 9 and "mobilenet-offline@" in said


def test_a_distance_fed_by_batches() -> None:
    from diffdistill import MobileNetFeatures, frechet_distance, generate

    names, said = run(block_with("FrechetDistance("), {})
    real, extract = names["real"], MobileNetFeatures()
    drawn = torch.cat(list(generate("assets/student", real.captions, 1, 1.0)))
    assert len(real) == 64
    assert float(said) == pytest.approx(frechet_distance(extract(drawn), extract(real.images)), rel=1e-6)


def test_a_score_model_of_ones_own() -> None:
    names, _ = run(block_with("class Points"), {})
    assert torch.cdist(names["x"], names["model"].data).min(1).values.max() < 0.1


def test_the_ten_lines_of_the_readme() -> None:
    (block,) = blocks("README.md")
    assert len(block[0].splitlines()) <= 12  # with the imports and an empty line
    names, _ = run(block, {})
    assert names["images"].shape == (1, 3, 64, 64) and bool(names["loss"].isfinite())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in names["student"].network.parameters())


def test_the_code_of_the_codecs_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "photo.png", torch.rand(3, 40, 60))
    monkeypatch.chdir(tmp_path)
    (parts,) = blocks("docs/codec.md")
    names, _ = run(parts, {})
    assert names["image"].shape == (3, 40, 60) and len(names["data"]) < 3 * 40 * 60


def test_the_code_of_the_page_on_text_to_3d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage.measure")
    monkeypatch.chdir(tmp_path)
    (parts,) = blocks("docs/text-to-3d.md")
    names, _ = run(parts, {})
    assert names["made"].watertight
    mug = load_mesh(tmp_path / "mug.glb")
    assert isinstance(mug, Mesh)
    red, *others = mug.colours.mean(0)
    assert len(mug.faces) > 5000 and red > 4 * max(others)  # a red mug
    assert trimesh.Trimesh(mug.vertices, mug.faces).euler_number == 0  # with a handle: one hole through it
