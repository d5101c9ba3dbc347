"""`eval ref | calc | gen` through the command: a generator, stored images, one process and two, refusals."""

import hashlib
import json
from pathlib import Path

import pytest
from eval_calls import noise, one_thread, refused, said
from PIL import Image
from processes import in_two_processes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipeline import save_tiny_pipeline

from diffdistill.cli.eval import calc
from diffdistill.evaluation.features.mobilenet import _packaged_weights

weights = _packaged_weights()
pytestmark = pytest.mark.skipif(weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    noise("real", 6, 0)
    Path("prompts.txt").write_text("red apple\nblue car\ngreen pear\n")
    save_tiny_pipeline(tmp_path / "model")
    return tmp_path


def test_a_generator_measured_as_it_is_made_equals_its_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = ("--model", "model", "--prompts", "prompts.txt", "--steps", "2", "--seed", "5")
    assert said(capsys, "ref", "--images", "real", "--out", "ref.safetensors")["n"] == 6
    numbers = ("--metrics", "fd", "kd", "prdc")
    made = said(capsys, "calc", *sampler, "--pictures", "7", "--reference", "ref.safetensors", *numbers)
    assert said(capsys, "gen", *sampler, "--pictures", "7", "--out", "pictures") == {"folder": "pictures", "n": 7}
    stored = said(capsys, "calc", "--images", "pictures", "--reference", "real", *numbers)
    for key in ("fd", "kd", "kd_se", "precision", "coverage"):
        assert made[key] == pytest.approx(stored[key], rel=1e-6)
    assert made["n"] == 7 and made["protocol"]["protocol"].startswith("mobilenet-offline@")
    assert Path("pictures/prompts.txt").read_text().splitlines()[3] == "red apple"


def test_two_processes_give_the_numbers_of_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "model", "--prompts", "prompts.txt", "--pictures", "7", "--reference", "real"]
    with one_thread():
        one = said(capsys, "calc", *options)
    in_two_processes(calc.main, [*options, "--out", str(here / "two.json"), "--batch_size", "3"])
    two = json.loads(Path("two.json").read_text())
    assert one["n"] == two["n"] == 7
    for key in ("fd", "kd", "kd_se"):
        assert two[key] == pytest.approx(one[key], rel=1e-9)


def test_pictures_that_are_none_are_one_line_and_leave_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("model/vae/diffusion_pytorch_model.safetensors")
    weights = load_file(file)
    weights["decoder.conv_out.bias"][:] = float("nan")
    save_file(weights, file)
    sampler = ("--model", "model", "--prompts", "prompts.txt")
    for argv in (("calc", *sampler, "--reference", "real"), ("gen", *sampler, "--out", "pictures")):
        said_of = refused(capsys, *argv)
        assert "00000.png: images should lie in [0, 1], got values from nan" in said_of
    assert not Path("pictures").exists()


def test_a_damaged_reference_says_what_is_wrong(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "ref", "--images", "real", "--out", "ref.safetensors")
    with safe_open("ref.safetensors", framework="pt") as file:
        record, rows = file.metadata(), file.get_tensor("rows")
    rows[0, 0] = float("nan")
    save_file({"rows": rows}, "ref.safetensors", record)
    assert "not finite" in refused(capsys, "calc", "--images", "real", "--reference", "ref.safetensors")


def test_layouts_of_other_tools(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampler = ("--model", "model", "--prompts", "prompts.txt", "--per_prompt", "2")
    said(capsys, "gen", *sampler, "--layout", "geneval", "--out", "g")
    assert sorted(p.relative_to("g").as_posix() for p in Path("g").rglob("*.png")) == [
        f"{i:05d}/samples/{k:04d}.png" for i in range(3) for k in range(2)
    ]
    assert json.loads(Path("g/00001/metadata.jsonl").read_text()) == {"prompt": "blue car"}
    said(capsys, "gen", *sampler, "--layout", "hpsv2", "--out", "h")
    with Image.open("h/00005.jpg") as picture:
        assert picture.format == "JPEG"


def test_a_prompts_record_is_carried_whole(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        {"tag": "colors", "include": [{"class": "apple", "count": 1, "color": "red"}], "prompt": "a red apple"},
        {"tag": "counting", "include": [{"class": "car", "count": 2}], "exclude": [], "prompt": "two blue cars"},
    ]
    Path("geneval.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    sampler = ("--model", "model", "--prompts", "geneval.jsonl", "--per_prompt", "2")
    said(capsys, "gen", *sampler, "--layout", "geneval", "--out", "g")
    for i, record in enumerate(records):
        text = Path(f"g/{i:05d}/metadata.jsonl").read_text()
        assert json.loads(text) == record and text.count("\n") == 1
    said(capsys, "gen", *sampler, "--pictures", "5", "--out", "p")  # the prompts from their start again
    assert Path("p/prompts.txt").read_text().splitlines() == ["a red apple"] * 2 + ["two blue cars"] * 2 + [
        "a red apple"
    ]
    carried = [json.loads(line) for line in Path("p/metadata.jsonl").read_text().splitlines()]
    assert carried == [records[i] for i in (0, 0, 1, 1, 0)]
    made = said(capsys, "calc", *sampler[:4], "--pictures", "5", "--reference", "real")
    Path("plain.txt").write_text("a red apple\ntwo blue cars\n")
    plain = said(capsys, "calc", *sampler[:3], "plain.txt", "--pictures", "5", "--reference", "real")
    assert made["kd"] == plain["kd"] and made["made_from"] == plain["made_from"]
    Path("geneval.jsonl").write_text('{"prompt": "a red apple"}\n{"tag": "colors"}\n')
    refusal = refused(capsys, "gen", *sampler, "--out", "q")
    assert 'geneval.jsonl, line 2: it has no "prompt", but tag' in refusal and not Path("q").exists()


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFDISTILL_WEIGHTS", str(here / "weights"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(here / "hub"))
    Path("other.pth").write_bytes(b"other")
    for argv, says in (
        (("clac",), "unknown command eval 'clac'"),
        (("calc", "--images", "real", "--reference", "nowhere"), "no images at nowhere"),
        (("calc", "--images", "real", "--reference", "real", "--metrics", "fids"), "unknown metric 'fids'"),
        (("calc", "--images", "real", "--reference", "real", "--protocol", "cleen"), "did you mean 'clean'"),
        (("calc", "--images", "real", "--reference", "real", "--protocol", "clean@00000000"), "do not compare"),
        (("calc", "--images", "real", "--reference", "real", "--pictures", "9"), "holds 6 images; 9 were asked for"),
        (("calc", "--model", "model", "--reference", "real"), "--model needs --prompts"),
        (
            ("calc", "--images", "real", "--reference", "real", "--protocol", "clean"),
            "--weights PATH, or --weights download",
        ),
        (
            ("calc", "--images", "real", "--reference", "real", "--weights", "other.pth"),
            f"(or --weights_sha256 {hashlib.sha256(b'other').hexdigest()} if this file is meant)",
        ),
        (("ref", "--images", "real", "--out", "ref.npz"), "should end in .safetensors"),
        (("gen", "--model", "model", "--prompts", "prompts.txt", "--out", "real"), "real is there already"),
    ):
        assert says in refused(capsys, *argv)
