"""What sets of features share: protocols that refuse each other, files that come back bit for bit, damaged files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffdistill import __version__
from diffdistill.errors import UserError
from diffdistill.evaluation.features import feature_set
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.feature_set import require_same_protocol
from diffdistill.evaluation.features.statistics import FeatureStatistics

PROTOCOL = {"extractor": "tiny", "resize": {"kind": "bicubic", "side": 299}}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(features: Tensor, batch: int | None = None, **kwargs: object) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1], **kwargs)
    for rows in features.split(batch or max(len(features), 1)):
        statistics.update(rows)
    return statistics


def assert_same_bits(a: FeatureStatistics, b: FeatureStatistics) -> None:
    assert a.n == b.n
    assert torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance)


def test_protocols_that_differ_are_told_key_by_key() -> None:
    a = FeatureStatistics(3, PROTOCOL, source="val2014")
    b = FeatureStatistics(3, {"resize": {"kind": "bicubic", "side": 256}, "extractor": "tiny", "n": 4}, "student")
    with pytest.raises(UserError) as caught:
        a.merge(b)
    assert str(caught.value) == (
        "val2014 and student were measured under different protocols and do not compare: "
        "n is absent and 4; resize.side is 299 and 256"
    )
    with pytest.raises(UserError, match='extractor is absent and "tiny"'):
        require_same_protocol(FeatureStatistics(3), a)
    require_same_protocol(a, FeatureStatistics(3, dict(reversed(PROTOCOL.items()))))
    require_same_protocol(FeatureStatistics(3, {"mean": (1, 2)}), FeatureStatistics(3, {"mean": [1, 2]}))


@pytest.mark.parametrize("n", [1, 40, 256, 700])
def test_saved_and_loaded_bit_for_bit(tmp_path: Path, n: int) -> None:
    x = normal(n, 40, seed=0).float()
    saved = of(x, protocol=PROTOCOL, source="val2014")
    path = tmp_path / "new" / "val2014.safetensors"
    saved.save(path)
    loaded = FeatureStatistics.load(path)
    assert (loaded.n, loaded.protocol, loaded.source) == (n, PROTOCOL, "val2014")
    assert all(torch.equal(a, b) for a, b in zip(loaded.moments(), saved.moments(), strict=True))
    assert (loaded.factor() is None) == (saved.factor() is None)
    loaded.update(x)
    twice = of(torch.cat([x, x])).moments()
    assert loaded.n == 2 * n
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(loaded.moments(), twice, strict=True))
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["diffdistill"])
    assert record == {
        "kind": "statistics",
        "format": 1,
        "n": n,
        "d": 40,
        "protocol": PROTOCOL,
        "source": "val2014",
        "version": __version__,
    }
    assert list(path.parent.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    old = of(normal(9, 3, seed=0))
    old.save(path)

    def fail(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(feature_set.os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        of(normal(9, 3, seed=1)).save(path)
    assert_same_bits(FeatureStatistics.load(path), old)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="at least 1 row"):
        FeatureStatistics(3).save(path)


def test_files_that_are_not_statistics_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = of(normal(300, 4, seed=0), protocol=PROTOCOL)
    mean, scatter = good.moments()
    record = {"kind": "statistics", "format": 1, "n": 300, "d": 4, "protocol": {}, "source": ""}

    def write(tensors: dict[str, Tensor] | None = None, **changes: object) -> None:
        metadata = {"diffdistill": json.dumps({**record, **changes})}
        save_file(tensors or {"mean": mean, "scatter": scatter}, path, metadata)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            FeatureStatistics.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    refused("no file")
    path.write_bytes(b"PK\x03\x04 an npz, say")
    refused("not a file of feature statistics")
    good.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    refused("not a file of feature statistics")
    save_file({"mean": mean}, path)
    refused("not a file of feature statistics")
    save_file({"mean": mean}, path, {"diffdistill": "[1, 2]"})
    refused("not a file of feature statistics")
    rows = FeatureRows(4)
    rows.update(normal(3, 4, seed=0))
    rows.save(path)
    refused("holds rows of format 1, should be statistics of format 1")
    write(format=2)
    refused("of format 2, should be")
    write(n=-3)
    refused("damaged: its record has n -3")
    write(d=5)
    refused(r"damaged: it holds .*, should hold {'mean': \(5,\), 'scatter': \(5, 5\)}")
    write({"mean": mean})
    refused("damaged: it holds")
    write({"rows": torch.zeros(300, 5)})
    refused("damaged: it holds")
    write({"mean": mean.long(), "scatter": scatter})
    refused("damaged: mean is torch.int64")
    write({"mean": mean / 0, "scatter": scatter})
    refused("damaged: mean holds values that are not finite")
    write({"mean": mean, "scatter": -scatter})
    refused("damaged: its scatter")
    write({"mean": mean, "scatter": scatter.triu()})
    refused("damaged: its scatter")
    write()
    assert FeatureStatistics.load(path).n == 300
