"""Bad input: one line, exit code 2, nothing written."""

from pathlib import Path

import pytest

from diffdistill.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "emoji_autoencoder.yaml")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(list(argv))
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return code, error


def test_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for key, near in (("--method.learnin_rate", "learning_rate"), ("--training.batchsize", "batch_size")):
        code, error = run(capsys, "train", CONFIG, key, "3", "--output_dir", str(tmp_path / "x"))
        assert code == 2 and near in error
    assert not (tmp_path / "x").exists()


def test_unknown_key_in_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(Path(CONFIG).read_text().replace("batch_size", "batch_sise"))
    code, error = run(capsys, "train", str(bad), "--output_dir", str(tmp_path / "x"))
    assert code == 2 and "batch_size" in error


def test_ill_typed_value(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, error = run(capsys, "train", CONFIG, "--training.batch_size", "many", "--output_dir", str(tmp_path / "x"))
    assert code == 2 and "batch_size" in error and "int" in error


def test_missing_config(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = run(capsys, "train", "nowhere.yaml")
    assert code == 2 and "nowhere.yaml" in error


def test_a_folder_that_holds_a_run_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: other\n")
    code, error = run(capsys, "train", CONFIG, "--output_dir", str(tmp_path))
    assert code == 2 and "already holds a run" in error
    assert (tmp_path / "config.yaml").read_text() == "method: other\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = run(capsys, "trian")
    assert code == 2 and "train" in error


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "x")
    assert main(["train", CONFIG, "--dry_run", "--method.data", str(ROOT / "assets/emoji"), "--output_dir", out]) == 0
    assert "6400 steps of 64" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
