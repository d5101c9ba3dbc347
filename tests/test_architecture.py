"""The command starts light."""

import subprocess
import sys

HEAVY = ("torch", "diffusers", "transformers", "accelerate")


def loaded_by(code: str) -> set[str]:
    probe = f"import sys; {code}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


def test_help_imports_nothing_heavy() -> None:
    assert loaded_by("from diffdistill.cli.main import main; main(['--help'])") == set()


def test_the_config_schema_does_not_need_diffusers() -> None:
    code = "import diffdistill.methods; from diffdistill.cli.train import build_parser; build_parser()"
    assert "diffusers" not in loaded_by(code)
