"""Streamed statistics against numpy in long double, their own shuffles, and a second process."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffdistill.evaluation.features import statistics as statistics_module
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.statistics import FeatureStatistics

PROTOCOL = {"extractor": "tiny", "resize": {"kind": "bicubic", "side": 299}}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(features: Tensor, batch: int | None = None, **kwargs: object) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1], **kwargs)
    for rows in features.split(batch or max(len(features), 1)):
        statistics.update(rows)
    return statistics


def exact_moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in two passes of 64-bit significands."""
    x = features.double().numpy().astype(np.longdouble)
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred / (len(x) - 1)


def assert_same_bits(a: FeatureStatistics, b: FeatureStatistics) -> None:
    assert a.n == b.n
    assert torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance)


def error(statistics: FeatureStatistics, features: Tensor) -> float:
    """Largest error of the covariance, relative to the deviations of both features."""
    mean, covariance = exact_moments(features)
    deviation = np.sqrt(covariance.diagonal())
    np.testing.assert_allclose(statistics.mean.numpy(), mean.astype(float), rtol=1e-14, atol=1e-14)
    return float(np.abs((statistics.covariance.numpy() - covariance) / np.outer(deviation, deviation)).max())


@pytest.mark.parametrize(("n", "d"), [(5, 20), (20, 20), (256, 20), (257, 20), (900, 20), (299, 300), (750, 300)])
def test_batches_change_no_bit(n: int, d: int) -> None:
    x = normal(n, d, seed=0) + 3
    whole = of(x)
    assert whole.n == n
    assert error(whole, x) < 1e-13
    for batch in (1, 7, 64, 256, 300):
        assert_same_bits(of(x, batch), whole)
    looked_at = FeatureStatistics(d)
    for rows in x.split(100):
        looked_at.update(rows)
        _ = looked_at.mean, looked_at.n > 1 and looked_at.covariance  # reading on the way changes nothing
    assert_same_bits(looked_at, whole)


def test_far_from_the_origin_no_digits_are_lost() -> None:
    x = normal(3000, 12, seed=0) + 1e4
    assert error(of(x, 50), x) < 1e-12
    merged = of(x[:1300], 50)
    merged.merge(of(x[1300:1310]))
    merged.merge(of(x[1310:]))
    assert error(merged, x) < 1e-12
    plain = (x.T @ x - len(x) * torch.outer(x.mean(0), x.mean(0))) / (len(x) - 1)  # what is not done
    assert np.abs(plain.numpy() - exact_moments(x)[1]).max() > 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_features_are_summed_in_float64(dtype: torch.dtype) -> None:
    x = (normal(700, 6, seed=0) * 100).to(dtype).requires_grad_()
    statistics = of(x)
    assert error(statistics, x.detach()) < 1e-13
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    assert not statistics.covariance.requires_grad


@pytest.mark.parametrize("sizes", [(10, 20), (300, 10), (10, 300), (300, 700), (0, 40), (40, 0), (256, 256)])
def test_merged_is_streamed(sizes: tuple[int, int]) -> None:
    x = normal(sum(sizes), 8, seed=0) * torch.logspace(-3, 3, 8) + 5
    first, second = x.split(sizes)
    merged, other = of(first, source="a"), of(second, source="b")
    before = other.moments()
    merged.merge(other)
    assert merged.n == len(x) and merged.source == "a"
    assert error(merged, x) < 1e-13
    assert all(torch.equal(a, b) for a, b in zip(other.moments(), before, strict=True))
    if len(x) <= 256 or not sizes[0]:  # all rows are still there, or nothing was
        assert_same_bits(merged, of(x))


@pytest.mark.parametrize("n", [40, 300])
def test_merged_with_itself_every_row_counts_twice(n: int) -> None:
    x = normal(n, 8, seed=0)
    statistics = of(x)
    statistics.merge(statistics)
    assert statistics.n == 2 * n and error(statistics, torch.cat([x, x])) < 1e-13


def test_rows_are_at_hand_while_they_are_fewer_than_dimensions() -> None:
    x = normal(30, 30, seed=0)
    factor = of(x).factor()
    assert factor is not None
    torch.testing.assert_close(factor.T @ factor, of(x).covariance, rtol=1e-12, atol=1e-14)
    assert of(x[:1]).factor() is None
    assert of(normal(31, 30, seed=0)).factor() is None
    assert FeatureStatistics.from_moments(9, x[0], x.T @ x).factor() is None


def test_from_moments() -> None:
    x = normal(500, 6, seed=0)
    statistics = FeatureStatistics.from_moments(500, x.mean(0), x.T.cov(), PROTOCOL, "published")
    torch.testing.assert_close(statistics.covariance, x.T.cov(), rtol=1e-14, atol=0)
    statistics.update(x[:100] + 1)
    assert error(statistics, torch.cat([x, x[:100] + 1])) < 1e-13
    with pytest.raises(ValueError, match=r"\(d,\) and \(d, d\), got \(6,\) and \(5, 6\)"):
        FeatureStatistics.from_moments(500, x.mean(0), x.T.cov()[:5])
    with pytest.raises(ValueError, match="at least 2, got 1"):
        FeatureStatistics.from_moments(1, x.mean(0), x.T.cov())
    with pytest.raises(ValueError, match="not finite"):
        FeatureStatistics.from_moments(9, x.mean(0) / 0, x.T.cov())


def test_bad_rows_are_named_and_not_taken_in() -> None:
    statistics = of(normal(5, 3, seed=0))
    broken = normal(5, 3, seed=1)
    broken[2, 1], broken[4, 0] = float("nan"), float("inf")
    for bad, message in (
        (normal(5, 4, seed=0), r"shape \(N, 3\), got \(5, 4\)"),
        (normal(3, seed=0), r"shape \(N, 3\), got \(3,\)"),
        (torch.zeros(5, 3, dtype=torch.uint8), "floating point, got torch.uint8"),
        (broken, "not finite, in 2 rows, the first 2"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.update(bad)
    assert_same_bits(statistics, of(normal(5, 3, seed=0)))
    with pytest.raises(ValueError, match="at least 2 rows of features, got 1"):
        _ = of(normal(1, 3, seed=0)).covariance
    with pytest.raises(ValueError, match="at least 1 rows of features, got 0"):
        _ = FeatureStatistics(3).mean
    with pytest.raises(ValueError, match="d should be at least 1, got 0"):
        FeatureStatistics(0)
    with pytest.raises(ValueError, match="size 3, got 4"):
        statistics.merge(FeatureStatistics(4))
    with pytest.raises(ValueError, match="only JSON values"):
        FeatureStatistics(3, {"device": torch.device("cpu")})


def test_without_processes_all_reduce_is_a_copy() -> None:
    statistics = of(normal(300, 4, seed=0), protocol=PROTOCOL)
    total = statistics.all_reduce()
    assert_same_bits(total, statistics)
    total.update(normal(3, 4, seed=1))
    assert statistics.n == 300 and total.protocol == PROTOCOL
    assert FeatureStatistics(4).all_reduce().n == 0


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from diffdistill.errors import UserError
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.statistics import FeatureStatistics

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x = torch.load(f"{folder}/x.pt", weights_only=True)

def mine(kind, rows, protocol=None):
    share = kind(x.shape[1], protocol or {})
    share.update(rows[rank::2])
    return share

def keep(name, value):
    if rank == 0:
        value.save(f"{folder}/{name}.safetensors")

share = mine(FeatureStatistics, x)
keep("many", share.all_reduce())
again = share.all_reduce()
assert again.n == len(x) and share.n == len(x[rank::2])
keep("few", mine(FeatureStatistics, x[:15]).all_reduce())
keep("one", mine(FeatureStatistics, x[:1]).all_reduce())
assert mine(FeatureStatistics, x[:0]).all_reduce().n == 0
published = FeatureStatistics.from_moments(7, x[0], torch.eye(x.shape[1]))
keep("mixed", (published if rank else mine(FeatureStatistics, x[:16])).all_reduce())
keep("rows", mine(FeatureRows, x[:15]).all_reduce())
keep("row", mine(FeatureRows, x[:1].float() if rank else x[:1]).all_reduce())
for kind in (FeatureStatistics, FeatureRows):
    try:
        mine(kind, x, {"side": rank}).all_reduce()
    except UserError as error:
        assert "different protocols" in str(error)
    else:
        raise AssertionError("not refused")
dist.destroy_process_group()
"""


def test_two_processes_count_as_one(tmp_path: Path) -> None:
    x = normal(1001, 20, seed=0) + 100
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", TWO_PROCESSES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]

    def load(name: str) -> FeatureStatistics:
        return FeatureStatistics.load(tmp_path / f"{name}.safetensors")

    assert load("many").n == 1001 and error(load("many"), x) < 1e-13
    assert_same_bits(load("few"), of(x[:15]))  # in the order of one process
    assert load("few").factor() is not None
    assert load("one").n == 1 and torch.equal(load("one").mean, x[0])
    mixed = FeatureStatistics.from_moments(7, x[0], torch.eye(20))
    mixed.merge(of(x[:16:2]))
    torch.testing.assert_close(load("mixed").covariance, mixed.covariance, rtol=1e-12, atol=1e-12)
    assert torch.equal(FeatureRows.load(tmp_path / "rows.safetensors").features, x[:15])
    assert torch.equal(FeatureRows.load(tmp_path / "row.safetensors").features, x[:1])


MEMORY = """
import resource, sys, torch
from diffdistill.evaluation.distances.frechet import frechet_distance_of
from diffdistill.evaluation.features.statistics import FeatureStatistics
torch.set_num_threads(1)
d, n = 512, int(sys.argv[1])
sets = FeatureStatistics(d), FeatureStatistics(d)
generator = torch.Generator().manual_seed(0)
for _ in range(n // 100):
    for one in sets:
        one.update(torch.randn(100, d, generator=generator))
assert frechet_distance_of(*sets) > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_is_that_of_a_thousand_images_at_twenty_thousand() -> None:
    few, many = (
        int(subprocess.run([sys.executable, "-c", MEMORY, n], capture_output=True, check=True, timeout=100).stdout)
        for n in ("1000", "20000")
    )
    assert many < 1.05 * few


def test_docstring_examples() -> None:
    result = doctest.testmod(statistics_module)
    assert result.attempted
    assert not result.failed
