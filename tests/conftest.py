"""The order of the test files: slow ones first, so that two workers end at about the same time."""

from pathlib import Path

import pytest

# files of few tests that take long; then whole folders, the slowest first
SLOW = (
    "training/test_several_processes.py", "models/test_portable_export.py", "cli/test_eval_sweep_resumed.py",
    "cli/test_quickstart_command.py", "evaluation/test_floor.py", "distill/test_two_time_methods_learn.py",
    "methods/test_adversarial.py", "methods/test_two_processes.py", "evaluation/test_align.py",
    "evaluation/test_against_others.py", "cli/test_eval_command.py", "cli/test_eval_sweep.py",
)  # fmt: skip
FOLDERS = ("methods", "training", "cli", "models", "distill", "evaluation", "codec", "text3d")
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files; the tests of a file keep their order. It needs pytest-xdist's --no-loadscope-reorder."""
    items.sort(key=lambda item: _place(item.path.relative_to(TESTS).as_posix()) if TESTS in item.path.parents else 0)


def _place(file: str) -> int:
    if file in SLOW:
        return SLOW.index(file)
    folder = file.split("/")[0]
    return len(SLOW) + (FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS))
