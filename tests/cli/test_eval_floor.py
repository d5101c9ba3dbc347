"""`eval calc --split_reference` and `--real`: what real images score, against the rows worked out by hand."""

from pathlib import Path

import pytest
import torch
from eval_calls import noise, refused, said

from diffdistill.data.sources import open_source
from diffdistill.evaluation.features.mobilenet import MobileNetFeatures, _packaged_weights
from diffdistill.evaluation.quick import quick_numbers

weights = _packaged_weights()
pytestmark = pytest.mark.skipif(weights is None or not weights.is_file(), reason="MobileNetV2's weights are missing")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path / "cache"))
    noise("generated", 4, 0)
    noise("reference", 9, 1, top=64)
    noise("real", 7, 2, top=64)
    return tmp_path


def features(folder: str) -> torch.Tensor:
    source = open_source(folder)
    return MobileNetFeatures()(torch.stack([source.read(i) for i in range(len(source))]))


def drawn(n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def holds(found: dict, expected: dict) -> None:
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def test_a_part_of_the_reference_is_the_floor_and_no_longer_reference(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = said(capsys, "calc", "--images", "generated", "--reference", "reference", "--split_reference")
    real, order = features("reference"), drawn(9)
    holds(report, quick_numbers(features("generated"), real[order[4:]]))
    holds(report["floor"], quick_numbers(real[order[:4]], real[order[4:]]))
    assert report["kd"] > report["floor"]["kd"] and (report["n"], report["n_reference"]) == (4, 5)
    whole = said(capsys, "calc", "--images", "reference", "--reference", "reference", "--split_reference")
    assert (whole["floor"]["n"], whole["n_reference"]) == (4, 5)  # at most half


def test_real_pictures_set_aside_meet_the_same_reference(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "ref", "--images", "reference", "--out", "ref.safetensors")
    numbers = ("--metrics", "fd", "kd")
    report = said(capsys, "calc", "--images", "generated", "--reference", "ref.safetensors", "--real", "real", *numbers)
    reference = features("reference")
    holds(report, quick_numbers(features("generated"), reference))
    holds(report["floor"], quick_numbers(features("real")[drawn(7)[:4]], reference))  # as many as are generated
    assert report["floor"]["pictures"] == "real" and "protocol" not in report["floor"]


def test_refusals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise("few", 4, 3)
    said(capsys, "ref", "--images", "reference", "--out", "moments.safetensors", "--statistics")
    calc = ("calc", "--images", "generated")
    for argv, says in (
        ((), "there is nothing to measure"),
        (("--metrics", "fd"), "--metrics needs --reference"),
        (("--agreement", "clip", "--captions", "x", "--real", "real"), "--real needs --reference"),
        (("--agreement", "clip", "--captions", "x", "--split_reference"), "--split_reference needs --reference"),
        (("--reference", "real", "--real", "./real"), "--real is the reference itself"),
        (("--reference", "real", "--real", "real", "--split_reference"), "not allowed with argument --real"),
        (("--reference", "few", "--split_reference"), "the floor: kd needs at least 3 images; there are 2"),
        (("--reference", "moments.safetensors", "--metrics", "fd", "--split_reference"), "mean and scatter alone"),
        (("--reference", "reference", "--real", "nowhere"), "no images at nowhere"),
    ):
        assert says in refused(capsys, *calc, *argv)
