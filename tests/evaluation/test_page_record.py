"""A sweep from outside: what its contract allows is read, all else is refused in one line that says where."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_sweep import shapes, write_fake_sweep, write_png
from PIL import Image

from diffdistill.errors import UserError
from diffdistill.evaluation.page import read, strips
from diffdistill.evaluation.page.read import read_sweep
from diffdistill.evaluation.page.report import html_report
from diffdistill.evaluation.page.strips import read_strip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_fake_sweep(tmp_path, steps=(1, 4), guidances=(1.0, 3.0), side=8)
    return tmp_path


def put(folder: Path, place: str, value: Any) -> None:
    """Replace what stands at a place such as "rows.0.mean.kd"; `...` removes it."""
    record = json.loads((folder / "sweep.json").read_text())
    *path, last = place.split(".")
    at = record
    for key in path:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if value is ...:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    (folder / "sweep.json").write_text(json.dumps(record))


def test_a_sweep_is_read_as_it_was_written(sweep: Path) -> None:
    found = read_sweep(sweep)
    assert found.raw == json.loads((sweep / "sweep.json").read_text())
    assert [(row.generator, row.steps, row.guidance) for row in found.rows] == [
        ("teacher", 1, 1.0), ("teacher", 1, 3.0), ("teacher", 4, 1.0), ("teacher", 4, 3.0), ("student", 1, 1.0)
    ]  # fmt: skip
    assert found.floor is not None and found.floor.mean["kd"] == found.raw["floor"]["mean"]["kd"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (..., "and guidance 1 and 3."),
        (0, "and guidance 1 and 3, without noise while sampling (eta 0)."),
        (0.25, "and guidance 1 and 3, with noise while sampling, eta 0.25."),
        (1, "and guidance 1 and 3, with noise while sampling, eta 1."),
    ],
)
def test_noise_while_sampling_is_read_and_said(sweep: Path, value: Any, said: str) -> None:
    if value is not ...:
        put(sweep, "eta", value)
    assert read_sweep(sweep).eta == (None if value is ... else value)
    assert said in html_report(sweep)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("version", 1, "version is 1; this program reads version 2"),
        ("version", True, "version is True"),
        ("rows", {}, "rows should be a list"),
        ("rows", [None], "rows[0] should be an object, got nothing"),
        ("rows.0.mean.kd", "0.2", "rows[0].mean.kd should be a number, got '0.2'"),
        ("rows.0.mean.kd", True, "rows[0].mean.kd should be a number, got True"),
        ("rows.0.mean.kd", 10**400, "rows[0].mean.kd should be a number up to 1e+12"),
        ("rows.1.steps", 0, "rows[1].steps should be a whole number from 1, got 0"),
        ("rows.1.steps", 2.0, "rows[1].steps should be a whole number from 1, got 2.0"),
        ("rows.1.guidance", -1, "rows[1].guidance is -1"),
        ("rows.1.guidance", 1, "rows[1] repeats 'teacher' at 1 steps and guidance 1"),
        ("rows.1.generator", "other", "rows[1].generator is 'other', which generators does not name"),
        ("rows.0.seeds", {"7": {}}, "rows[0].seeds has '7', which seeds does not name"),
        ("rows.0.seeds", [], "rows[0].seeds should be an object"),
        ("rows.0.nearest_distances", ["a"], "rows[0].nearest_distances[0] should be a number"),
        ("rows.0.nearest_distances", [1.0] * 25, "rows[0].nearest_distances should be a list of at most 24"),
        ("rows.0.strip", 5, "rows[0].strip should be a text"),
        ("generators.0.kind", "<b>", "generators[0].kind is '<b>'"),
        ("generators.1.name", "teacher", "generators should be one or more different ones"),
        ("generators.1.digest", ..., "generators[1].digest should be a text of 1 to 10000 characters, got nothing"),
        ("seeds", [0, 0, 1], "seeds should be one or more different ones"),
        ("complete", "yes", "complete should be true or false, got 'yes'"),
        ("reference.n", -5, "reference.n should be a whole number from 1"),
        ("samples.prompts", [], "samples.prompts is empty"),
        ("samples.prompts", ["a"] * 25, "prompts should be a list of at most 24"),
        ("samples.prompts.0", "a" * 10_001, "prompts[0] should be a text of 1 to 10000 characters"),
        ("protocol", [], "protocol should be an object"),
        ("floor", 3, "floor should be an object"),
        ("floor.unseen", {"n": "8"}, "floor.unseen.n should be a number, got '8'"),
        ("eta", True, "eta should be a number, got True"),
        ("eta", "0.5", "eta should be a number, got '0.5'"),
        ("eta", 1.5, "eta is 1.5; it should be in [0, 1]"),
        ("eta", -0.1, "eta is -0.1; it should be in [0, 1]"),
        ("nearest_of", "web", "nearest_of is 'web'; it should be training or reference"),
        ("prompts_of", ..., "prompts_of is nothing; it should be training or file"),
        ("timing", {"on": [{"threads": 0, "device": "cpu"}]}, "on[0].threads should be a whole number from 1, got 0"),
        ("agreement.held_out.captions.r1", None, "agreement.held_out.captions.r1 should be a number, got nothing"),
    ],
)
def test_what_the_contract_does_not_allow_is_refused(sweep: Path, place: str, value: Any, says: str) -> None:
    put(sweep, place, value)
    with pytest.raises(UserError) as refused:
        html_report(sweep)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a readable JSON file"),
        ('{"version": NaN}', "NaN is not a number in JSON"),
        ('{"version": 1, "protocol": {"a": 1e999}}', "not a readable JSON file"),
        ('{"version": 1, "protocol": {"a": "\\ud800"}}', "not a readable JSON file"),
        ("[" * 100_000, "not a readable JSON file"),
        ("[]", "the record should be an object"),
        ('{"version": "\\u001b[31m"}', "version is"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match="sweep.json") as refused:
        read_sweep(tmp_path)
    assert says in str(refused.value) and str(refused.value).isprintable()


def test_no_sweep_and_a_huge_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no sweep.json"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(" " * 100)
    monkeypatch.setattr(read, "MAX_JSON_BYTES", 99)
    with pytest.raises(UserError, match="has 100 bytes"):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "/etc/passwd", "strips/../../outside.png", "C:/x.png", "..\\x.png", "strips", "sweep.json",
     "a\0.png", "http://host/x.png", "data:image/png,x.png", "x" * 500 + ".png"],
)  # fmt: skip
def test_paths_stay_in_the_folder(sweep: Path, name: str) -> None:
    write_png(sweep.parent / "outside.png", shapes(12, 8, 0))
    put(sweep, "rows.0.strip", name)
    with pytest.raises(UserError, match="is not a path of a .png inside") as refused:
        html_report(sweep)
    assert len(str(refused.value)) < 300


def test_links_out_of_the_folder_and_missing_files_are_refused(sweep: Path) -> None:
    write_png(sweep.parent / "outside.png", shapes(12, 8, 0))
    (sweep / "link.png").symlink_to(sweep.parent / "outside.png")
    (sweep / "round.png").symlink_to("round.png")
    os.mkfifo(sweep / "pipe.png")
    for name, says in (
        ("link.png", "leads out of"),
        ("round.png", "round.png"),
        ("gone.png", "is not there"),
        ("pipe.png", "is not there"),
    ):
        with pytest.raises(UserError, match=says):
            read_strip(sweep, name, 12)


def test_files_that_are_no_strips_are_refused(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(sweep / "short.png", shapes(11, 8, 0))
    whole = (sweep / "strips" / "real.png").read_bytes()
    (sweep / "cut.png").write_bytes(whole[:200])
    (sweep / "text.png").write_text("<svg onload=alert(1)>")
    Image.fromarray(shapes(12, 8, 0)).save(sweep / "jpeg.png", format="JPEG")
    for name, says in (
        ("short.png", "is 88x8: not 1 x 12 square images"),
        ("cut.png", "not a readable PNG"),
        ("text.png", "not a readable PNG"),
        ("jpeg.png", "not a readable PNG"),
    ):
        with pytest.raises(UserError, match=says):
            read_strip(sweep, name, 12)
    monkeypatch.setattr(strips, "MAX_PNG_BYTES", len(whole) - 1)
    with pytest.raises(UserError, match=f"has {len(whole)} bytes"):
        read_strip(sweep, "strips/real.png", 12)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(sweep: Path) -> None:
    Image.new("1", (12 * 2000, 2000)).save(sweep / "bomb.png")
    assert (sweep / "bomb.png").stat().st_size < 50_000
    with pytest.raises(UserError, match="is 24000x2000; at most 40,000,000 pixels"):
        read_strip(sweep, "bomb.png", 12)


def test_pixels_survive_and_what_else_a_file_carries_does_not(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL.PngImagePlugin import PngInfo

    pixels, carried = shapes(12, 16, 30), PngInfo()
    carried.add_text("comment", "<script>alert(1)</script>")
    Image.fromarray(pixels).save(tmp_path / "s.png", pnginfo=carried)
    with (tmp_path / "s.png").open("ab") as file:
        file.write(b"<script>trailing</script>")
    strip = read_strip(tmp_path, "s.png", 12)
    assert (strip.width, strip.height, strip.side) == (192, 16, 16) and b"script" not in strip.png
    assert np.array_equal(np.asarray(Image.open(BytesIO(strip.png))), pixels)


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    write_png(tmp_path / "s.png", np.full((2 * 300, 3 * 300, 3), (10, 200, 30), np.uint8))
    strip = read_strip(tmp_path, "s.png", 3, rows=2)
    assert (strip.width, strip.height, strip.side) == (384, 256, 300)
