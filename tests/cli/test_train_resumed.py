"""`train --resume`: from another directory, with other spellings of paths, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_pipeline import save_tiny_pipeline

from diffdistill.cli.main import main

ROOT = Path(__file__).parents[2]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("diffdistill: error: ")
    return said.err.strip()


@pytest.fixture
def half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, the current directory, with a teacher, prompts and half of a run, started by relative paths."""
    project = tmp_path / "project"
    save_tiny_pipeline(project / "teacher", "epsilon")
    (project / "prompts.txt").write_text("red apple\nblue car\nred car\nblue apple\n")
    recipe = {
        "method": {
            "class_path": "diffdistill.methods.SwiftBrush",
            "init_args": {
                "teacher": {"source": "teacher"},
                "prompts": "prompts.txt",
                "fake": {"lora": {"rank": 4, "alpha": 4.0}},
            },
        },
        "training": {"samples": 16, "batch_size": 4, "cpu": True, "checkpoint_every": 8, "checkpoints_limit": 9},
        "output_dir": "run",
    }
    (project / "c.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(project)
    assert main(["train", "c.yaml"]) == 0
    (project / "run").rename(project / "whole")
    shutil.copytree(project / "whole", project / "run")
    shutil.rmtree(project / "run" / "checkpoint-0000000016")
    return project


def resumed_to_the_same_bits(run: Path, *argv: str) -> bool:
    assert main(["train", "--resume", "latest", "--output_dir", str(run), *argv]) == 0
    one, two = (
        load_file(folder / "checkpoint-0000000016" / "student.safetensors") for folder in (run, run.parent / "whole")
    )
    return all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("spelled", ["the run's own", "absolute", "moved", "renamed prompts", "by its class's module"])
def test_a_run_goes_on_from_elsewhere_and_with_other_spellings(
    half_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if spelled == "absolute":
        argv = [f"--method.teacher.source={half_done / 'teacher'}", f"--method.prompts={half_done / 'prompts.txt'}"]
    elif spelled == "moved":
        (half_done / "teacher").rename(tmp_path / "another")
        argv = ["--method.teacher.source", "another"]
    elif spelled == "renamed prompts":
        (half_done / "prompts.txt").rename(tmp_path / "words.txt")
        argv = ["--method.prompts", "words.txt"]
    elif spelled == "by its class's module":
        config = half_done / "run" / "config.yaml"
        config.write_text(config.read_text().replace("methods.SwiftBrush", "methods.swiftbrush.SwiftBrush"))
        argv = []
    else:
        argv = []
    assert resumed_to_the_same_bits(half_done / "run", *argv)
    assert resumed_to_the_same_bits(half_done / "run", *argv)  # the second time goes by the first one's checkpoint


def test_a_copied_project_goes_on_without_the_first_one(
    half_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = half_done.rename(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert resumed_to_the_same_bits(moved / "run")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--method.prompts", "other.txt"],
         ["method.prompts was prompts.txt with content", "is other.txt with content"]),
        (["--training.batch_size", "8", "--method.guidance_scale", "2"],
         ["training.batch_size was 4, is 8", "method.guidance_scale was 4.5, is 2.0"]),
        (["--training.samples", "4"], ["training.samples was 16, is 4, fewer than the 8 that are done"]),
        (["--method", "DMD2", "--method.teacher.source", "teacher", "--method.prompts", "prompts.txt"],
         ['method was "diffdistill.methods.swiftbrush.SwiftBrush", is "diffdistill.methods.dmd2.DMD2"']),
    ],
)  # fmt: skip
def test_another_run_is_refused_with_each_setting_then_and_now(
    capsys: pytest.CaptureFixture[str], half_done: Path, argv: list[str], says: list[str]
) -> None:
    (half_done / "other.txt").write_text("red apple\nblue car\n")
    config, capsys_before = (half_done / "run" / "config.yaml").read_text(), capsys.readouterr()
    assert capsys_before.out
    error = refusal(capsys, "train", "--resume", "latest", "--output_dir", "run", *argv)
    assert all(part in error for part in says)
    assert (half_done / "run" / "config.yaml").read_text() == config


def test_a_path_that_is_gone_is_named_with_its_override(
    capsys: pytest.CaptureFixture[str], half_done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (half_done / "prompts.txt").rename(half_done / "words.txt")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    error = refusal(capsys, "train", "--resume", "latest", "--output_dir", str(half_done / "run"))
    assert "method.prompts is prompts.txt" in error and error.endswith("add --method.prompts PATH")


@pytest.mark.parametrize("moved", [False, True])
def test_prompts_of_a_column_go_on_from_elsewhere(
    half_done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    lines = (half_done / "prompts.txt").read_text().splitlines()
    (half_done / "p.csv").write_text("Prompt,other\n" + "".join(f"{line},x\n" for line in lines))
    for run in ("whole", "run"):
        shutil.rmtree(half_done / run)
        assert main(["train", "c.yaml", "--method.prompts", "p.csv::Prompt", "--output_dir", run]) == 0
    shutil.rmtree(half_done / "run" / "checkpoint-0000000016")
    monkeypatch.chdir(tmp_path)
    if moved:
        half_done = half_done.rename(tmp_path / "copy")
    assert resumed_to_the_same_bits(half_done / "run")


@pytest.mark.parametrize("key", ["teacher.source", "prompts"])
def test_before_the_first_checkpoint_a_path_that_is_not_here_is_named_with_its_override(
    capsys: pytest.CaptureFixture[str], half_done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    shutil.rmtree(half_done / "run" / "checkpoint-0000000008")
    monkeypatch.chdir(tmp_path)
    other = {"teacher.source": "prompts", "prompts": "teacher.source"}[key]
    there = half_done / {"teacher.source": "teacher", "prompts": "prompts.txt"}[other]
    capsys.readouterr()
    argv = ("train", "--resume", "latest", "--output_dir", str(half_done / "run"), f"--method.{other}", str(there))
    error = refusal(capsys, *argv)
    assert f"method.{key} is" in error and f"add --method.{key} PATH" in error
    assert not (half_done / "run" / "checkpoint-0000000008").exists()
