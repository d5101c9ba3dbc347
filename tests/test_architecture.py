"""Imports point one way, the package and the command start light, and everything public has a docstring."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
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
    assert loaded_by("import diffdistill, diffdistill.cli.main; dir(diffdistill)") == set()


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("train",),
        ("generate",),
        ("quickstart",),
        ("eval", "calc"),
        ("eval", "pairs"),
        ("codec", "eval"),
        ("codec", "bench"),
        ("text3d", "generate"),
        ("text3d", "render"),
        ("text3d", "eval"),
    ],
)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    assert loaded_by(help_of(*command)) == set()


def test_methods_and_the_help_of_one_need_torch_alone() -> None:
    assert loaded_by("import diffdistill.methods") == set()
    assert loaded_by("from diffdistill.methods import SwiftBrush") <= {"torch"}
    assert loaded_by(help_of("train", "--method", "SwiftBrush")) <= {"torch"}


def test_importing_the_package_and_asking_for_help_take_no_time() -> None:
    """CPU seconds beside those of the interpreter itself, the best of three, so that other work matters little."""

    def seconds(code: str) -> float:
        probe = f"import time\nstarted = time.process_time()\n{code}\nprint('took:', time.process_time() - started)"
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1].removeprefix("took:"))

    helps = [(help_of(*command), 0.5) for command in ((), ("eval", "calc"))]
    for code, most in (("import diffdistill", 0.1), *helps, (help_of("train"), 1.0)):
        assert min(seconds(code) for _ in range(3)) < most, code


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diffdistill", "generate", "--no_such_option"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("diffdistill: error: ")


def modules() -> Iterator[tuple[str, Path]]:
    """Name and file of each module of the package."""
    for path in sorted((ROOT / "diffdistill").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def inherits_its_docstring(module: str, owner: str, name: str) -> bool:
    """Whether a base class of `owner`, in the package, documents the method `name`."""
    found = getattr(importlib.import_module(module), owner)
    above = [base for base in found.__mro__[1:] if base.__module__.startswith("diffdistill.") and name in vars(base)]
    return any(getattr(vars(base)[name], "__doc__", None) for base in above)


def is_setter(method: ast.FunctionDef) -> bool:
    """Whether a method sets a property, which is documented where it is read."""
    return any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in method.decorator_list)


def undocumented(module: str, path: Path) -> Iterator[str]:
    """Names of the module and of its public classes, functions and methods that have no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if ast.get_docstring(tree) is None:
        yield module
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{module}.{node.name}"
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            hidden = not isinstance(method, ast.FunctionDef) or method.name.startswith("_") or is_setter(method)
            if hidden or ast.get_docstring(method) is not None:
                continue
            if not inherits_its_docstring(module, node.name, method.name):
                yield f"{module}.{node.name}.{method.name}"


def test_everything_public_has_a_docstring() -> None:
    """Modules, classes, functions and methods; a method that overrides a documented one has that one's docstring."""
    assert [name for module, path in modules() for name in undocumented(module, path)] == []
