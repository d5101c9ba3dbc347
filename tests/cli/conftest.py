"""Fixtures of the sweep's tests."""

import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_calls import align_module, save_tiny_emoji
from tiny_pipeline import save_tiny_pipeline

from diffdistill.comparison import generated
from diffdistill.models.generate import generate


@pytest.fixture
def sweep_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a sweep: a tiny emoji set, a tiny pipeline, an empty cache and stub towers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "diffdistill.evaluation.agreement.align", align_module())
    save_tiny_emoji(tmp_path / "emoji")
    save_tiny_pipeline(tmp_path / "model")
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Steps, guidance and first seed of noise of every batch that a cell makes."""
    calls: list[tuple[int, float, int]] = []

    def counted(model: Any, prompts: Any, steps: int, guidance: float, **options: Any) -> Any:
        calls.append((steps, guidance, options["seeds"][0]))
        return generate(model, prompts, steps, guidance, **options)

    monkeypatch.setattr(generated, "generate", counted)
    return calls
