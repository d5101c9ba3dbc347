"""What `eval sweep` refuses, in one line and before the first image."""

import shutil
from pathlib import Path

import pytest
from eval_calls import noise, refused, said
from sweep_calls import SWEEP, needs_mobilenet, record

from diffdistill.cli.main import main

pytestmark = needs_mobilenet


def test_corrupt_pictures_are_not_counted_and_too_few_are_refused(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise("real", 9, 0)
    noise("other", 7, 1)
    Path("prompts.txt").write_text("red apple\n")
    Path("real/03.png").write_bytes(b"no image")
    options = ("sweep", "--students", "model", "--prompts", "prompts.txt", "--pictures", "7", "--steps", "1")
    options = (*options, "--agreement", "none", "--reference", "real", "--on_corrupt", "skip")
    said(capsys, *options, "--seeds", "0", "--out", "out")
    assert record()["reference"]["n"] == 8
    said(capsys, *options, "--seeds", "0", "--out", "out")  # from the cells alone
    assert record()["reference"]["n"] == 8
    Path("other/03.png").write_bytes(b"no image")
    line = refused(capsys, *options, "--real", "other", "--out", "out2")
    assert "--real other holds 7 images, of which 6 could be read; a cell has 7" in line


def test_the_same_images_are_no_floor_by_whatever_path(sweep_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise("real", 8, 0)
    shutil.copytree("real", "copy")
    Path("renamed").mkdir()
    for i in range(8):
        shutil.copy(f"real/{i:02d}.png", f"renamed/x{i:02d}.png")
    said(capsys, "ref", "--images", "real", "--out", "ref.safetensors")
    shutil.copy("ref.safetensors", "other.safetensors")
    Path("prompts.txt").write_text("red apple\n")
    options = ("sweep", "--students", "model", "--prompts", "prompts.txt", "--pictures", "7", "--agreement", "none")
    for against, real in (
        ("real", "real"), ("real", "copy"), ("real", "renamed"), ("real", "ref.safetensors"),
        ("ref.safetensors", "other.safetensors"),
    ):  # fmt: skip
        line = refused(capsys, *options, "--reference", against, "--real", real, "--out", "out")
        assert f"--real {real} is the reference itself" in line


def test_what_a_report_could_not_show_is_refused_before_the_work(
    sweep_folder: Path, capsys: pytest.CaptureFixture[str], made: list
) -> None:
    whole = [str(i) for i in range(1, 66)]
    Path("long.txt").write_text("a" * 10_001)
    Path("half.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a \\ud800 dog"}\n')
    models = (*SWEEP, "--models", "model")
    for argv, says in (
        ((*models, "--seeds", *whole), "these are 65 seeds; a report shows at most 64"),
        ((*models, "--steps", *whole, "--guidance", *whole), "these are 4225 rows; a report shows at most 1000"),
        ((*SWEEP, "--students", *(f"n{i}=model" for i in whole)), "these are 65 generators; a report shows at most 32"),
        ((*SWEEP, "--models", f"{'a' * 101}=model"), "in at most 100 characters"),
        ((*models, "--prompts", "long.txt"), "a prompt has 10001 characters; a report shows at most 10000"),
        ((*models, "--prompts", "half.jsonl"), r"half.jsonl, line 2 has '\ud800' in it, half of a character"),
    ):
        assert says in refused(capsys, *argv)
    assert made == [] and not Path("out").exists()


def test_refusals(sweep_folder: Path, capsys: pytest.CaptureFixture[str], made: list) -> None:
    Path("notes").mkdir()
    Path("notes/diary.txt").write_text("no sweep")
    Path("file").write_text("")
    Path("prompts.txt").write_text("red apple\n")
    models = (*SWEEP, "--models", "model")
    for argv, says in (
        (SWEEP, "there is nothing to measure; name --models, --students or both"),
        ((*models, "--metrics", "fid"), "unknown metric 'fid'"),
        ((*models, "--steps", "0"), "--steps has 0; each must be at least 1"),
        ((*models, "--steps", "1001"), "model: steps is 1001; this pipeline's schedule allows 1 to 1000"),
        ((*models, "--guidance", "0.5"), "--guidance has 0.5; each must be from 1 to 1e+06"),
        ((*models, "--guidance", "nan"), "--guidance has nan"),
        ((*models, "--seeds", "-1"), "--seeds has -1"),
        ((*models, "--students", "model"), "two generators are called 'model'; name them as in model-2=PATH"),
        ((*models, "--students", "a/b=model"), "gives a generator the name 'a/b'"),
        ((*SWEEP, "--models", "./nowhere"), "no model at ./nowhere"),
        ((*models, "--pictures", "20"), "the set has 24, of which 6 must stay as the reference"),
        ((*models, "--pictures", "5"), "prdc needs at least 6 images"),
        ((*models, "--agreement_pictures", "1"), "it must be at least 2"),
        ((*models, "--agreement", "clip"), "names no CLIP"),
        ((*models, "--clip_prefix", "a "), "--clip_prefix needs --agreement clip"),
        ((*models, "--reference", "notes"), "--reference notes is no emoji set"),
        ((*models, "--real", "emoji"), "--real goes with --prompts"),
        ((*models, "--prompts", "prompts.txt", "--real", "emoji"), "--real emoji is the reference itself"),
        ((*models, "--prompts", "nothing.txt"), "there is no prompt file nothing.txt"),
        ((*models, "--out", "file"), "--out file is a file; name a folder"),
        ((*models, "--out", "notes"), "--out notes holds something that is no sweep"),
        ((*models, "--step", "2"), "unknown option --step"),
    ):
        capsys.readouterr()
        assert main(["eval", *argv]) == 2, argv
        captured = capsys.readouterr()
        assert captured.out == "" and len(captured.err.splitlines()) == 1, captured.err
        assert says in captured.err
    assert made == [] and not Path("out").exists()


@pytest.mark.parametrize("steps", [("1", "10"), ("10", "2"), ("19", "3", "10")])
@pytest.mark.parametrize("named", [("--models", "model"), ("--students", "model")])
def test_each_number_of_steps_is_tried_before_the_first_picture(
    capsys: pytest.CaptureFixture[str],
    sweep_folder: Path,
    made: list[tuple[int, float, int]],
    steps: tuple[str, ...],
    named: tuple[str, str],
) -> None:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(sweep_folder / "model")
    few = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 20}
    pipeline.scheduler = diffusers.PNDMScheduler(**few, steps_offset=1)  # takes no fewer than four
    pipeline.save_pretrained(sweep_folder / "model")
    options = (*SWEEP, *named, "--steps", *steps, "--guidance", "3", "--agreement", "none", "--seeds", "0")
    line = refused(capsys, *options)
    assert f"model: steps is {min(map(int, steps))}, and PNDMScheduler" in line
    assert made == [] and not (sweep_folder / "out").exists()
