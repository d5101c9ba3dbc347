"""Automatic precision takes bf16 only where it is the faster one."""

import pytest
import torch

from diffdistill.training import precision


@pytest.mark.parametrize(("bf16", "float32", "choice"), [(1.0, 2.0, "bf16"), (400.0, 1.0, "no"), (1.0, 1.0, "no")])
def test_auto_takes_the_faster(monkeypatch: pytest.MonkeyPatch, bf16: float, float32: float, choice: str) -> None:
    monkeypatch.setattr(precision, "_matmul_seconds", {torch.bfloat16: bf16, torch.float32: float32}.get)
    precision._fast_bf16.cache_clear()
    assert precision.resolve_precision("auto", cpu=True) == choice
    precision._fast_bf16.cache_clear()


@pytest.mark.parametrize("setting", ["no", "bf16"])
def test_what_is_asked_for_is_taken(setting: str) -> None:
    assert precision.resolve_precision(setting, cpu=True) == setting
