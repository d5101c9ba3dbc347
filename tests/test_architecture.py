"""Imports point one way, and the command starts light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds after the code."""
    probe = f"import sys\n{code}\nprint('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


def help_of(*command: str) -> str:
    """Code that asks for help, whether that returns or exits."""
    return (
        "from diffdistill.cli.main import main\n"
        f"try:\n    code = main({[*command, '--help']!r})\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "assert not code"
    )


def test_import_contracts() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_package_and_the_command_import_nothing_heavy() -> None:
    assert loaded_by("import diffdistill, diffdistill.cli.main") == set()


@pytest.mark.parametrize("command", [(), ("generate",), ("quickstart",), ("eval", "calc"), ("eval", "pairs")])
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    assert loaded_by(help_of(*command)) == set()


def test_help_of_train_needs_torch_alone() -> None:
    assert loaded_by(help_of("train")) <= {"torch"}
