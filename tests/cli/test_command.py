"""The dispatcher, and what the commands without a config refuse."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffdistill import __version__
from diffdistill.cli import main as dispatcher
from diffdistill.cli.main import COMMANDS, guard, main
from diffdistill.errors import UserError

ROOT = Path(__file__).parents[2]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("diffdistill: error: ")
    return error.strip()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["-h"], ["--help"]):
        assert main(argv) == 0
        said = capsys.readouterr().out
        assert all(command in said for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"diffdistill {__version__}\n"


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean train?" in refusal(capsys, "trian")
    assert "generate" in refusal(capsys, "zzz")


def test_errors_become_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def raises(error: BaseException) -> None:
        raise error

    assert guard(lambda: raises(UserError("wrong"))) == 2
    assert capsys.readouterr().err == "diffdistill: error: wrong\n"
    assert guard(lambda: raises(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):  # a defect is not dressed up as bad input
        guard(lambda: raises(ZeroDivisionError()))


def test_a_message_of_several_lines_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise UserError("first\n  second")

    assert dispatcher.guard(fails) == 2
    assert capsys.readouterr().err == "diffdistill: error: first second\n"


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        (("generate", "--model", "m", "--prompt", "x", "--out", "o", "--stpes", "3"), "--steps"),
        (("eval", "calc", "--images", "i", "--refrence", "r"), "--reference"),
    ],
)
def test_unknown_option_names_the_nearest(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], nearest: str
) -> None:
    assert f"the nearest is {nearest}" in refusal(capsys, *command)


def test_generate_refuses_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = tmp_path / "model"
    model.mkdir()
    rest = ["--out", str(out)]
    assert "model_index.json" in refusal(capsys, "generate", "--model", str(model), "--prompt", "x", *rest)
    assert "--prompt is empty" in refusal(capsys, "generate", "--model", "m", "--prompt", " ", *rest)
    assert "--steps is 0" in refusal(capsys, "generate", "--model", "m", "--prompt", "x", "--steps", "0", *rest)
    assert "invalid int value: 'two'" in refusal(
        capsys, "generate", "--model", "m", "--prompt", "x", "--steps", "two", *rest
    )  # fmt: skip
    assert "--out" in refusal(capsys, "generate", "--model", "m", "--prompt", "x")
    assert not out.exists()


@pytest.mark.parametrize(
    "script",
    [
        "train/distill.py",
        "train/teacher.py",
        "train/autoencoder.py",
        "train/codec.py",
        "eval/calc.py",
        "eval/pairs.py",
        "eval/codec.py",
    ],
)
def test_scripts_run_from_the_root_and_refuse_in_one_line(script: str) -> None:
    done = subprocess.run(
        [sys.executable, script, "--no_such_option", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
