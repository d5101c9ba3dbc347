"""Each state against the pure function on all rows at once; files and lazy names."""

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffdistill.evaluation as evaluation
from diffdistill.errors import UserError
from diffdistill.evaluation.distances import states
from diffdistill.evaluation.distances.cmmd import cmmd
from diffdistill.evaluation.distances.frechet import frechet_distance
from diffdistill.evaluation.distances.inception_score import inception_score
from diffdistill.evaluation.distances.kernel import kernel_distance, kernel_distance_subsets
from diffdistill.evaluation.distances.neighbours import prdc
from diffdistill.evaluation.distances.states import (
    CMMD,
    PRDC,
    FeatureRows,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    State,
)
from diffdistill.evaluation.features.statistics import FeatureStatistics

PROTOCOL = {"extractor": "tiny"}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(300, 12, seed=0), normal(280, 12, seed=1) + 0.4


def rows(features: Tensor = Y) -> FeatureRows:
    kept = FeatureRows(features.shape[1], PROTOCOL, "real")
    kept.update(features)
    return kept


CASES: dict[str, tuple[Callable[[], State], Callable[[], object]]] = {
    "fd": (lambda: FrechetDistance(rows().statistics(), PROTOCOL), lambda: frechet_distance(X, Y)),
    "kd": (lambda: KernelDistance(rows(), PROTOCOL), lambda: kernel_distance(X, Y)),
    "kid": (
        lambda: KernelDistance(rows(), PROTOCOL, subset_size=50, subsets=4, seed=7),
        lambda: kernel_distance_subsets(X, Y, 50, 4, 7),
    ),
    "cmmd": (lambda: CMMD(rows(), PROTOCOL, unbiased=True), lambda: cmmd(X, Y, unbiased=True)),
    "prdc": (lambda: PRDC(rows(), PROTOCOL, k_precision=2, k_density=4), lambda: prdc(X, Y, 2, 4)),
    "is": (lambda: InceptionScore(12, PROTOCOL, splits=3, shuffle_seed=1), lambda: inception_score(X, 3, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_state_is_the_function_of_all_rows(case: str) -> None:
    make, function = CASES[case]
    state = make()
    for batch in X.split(37):
        state.update(batch)
    found = state.compute()
    assert (found.total if case == "fd" else found) == pytest.approx(function(), rel=1e-9)

    for batch_size in (1, 300):
        again = make()
        for batch in X.split(batch_size):
            again.update(batch)
        assert again.compute() == found  # bit for bit
    assert again.all_reduce().compute() == found

    first, second = make(), make()
    first.update(X[:120])
    second.update(X[120:])
    first.merge(second)
    assert first.compute() == pytest.approx(found, rel=1e-10)
    second.reset()
    with pytest.raises(ValueError):
        second.compute()
    second.update(X)
    assert second.compute() == found


@pytest.mark.parametrize("kind", [KernelDistance, CMMD, PRDC, FrechetDistance])
def test_another_protocol_is_refused_before_work(kind: type[State]) -> None:
    reference = rows().statistics() if kind is FrechetDistance else rows()
    with pytest.raises(UserError, match='generated and real .* extractor is "large" and "tiny"'):
        kind(reference, {"extractor": "large"})
    state = kind(reference, PROTOCOL)
    with pytest.raises(ValueError, match=r"shape \(N, 12\), got \(3, 5\)"):
        state.update(torch.zeros(3, 5))


def test_scores_of_other_protocols_do_not_merge() -> None:
    with pytest.raises(UserError, match='extractor is "tiny" and absent'):
        InceptionScore(12, PROTOCOL).merge(InceptionScore(12, {}))
    with pytest.raises(ValueError, match="size 12, got 10"):
        InceptionScore(12, PROTOCOL).merge(InceptionScore(10, PROTOCOL))


def test_rows_are_kept_as_they_came(tmp_path: Path) -> None:
    batch = torch.ones(2, 3)
    kept = FeatureRows(3, PROTOCOL, "real")
    assert kept.features.shape == (0, 3)
    kept.update(batch)
    batch += 1  # a caller's buffer may be used again
    kept.update(batch.half())
    assert kept.n == 4 and kept.features.dtype == torch.float32
    assert torch.equal(kept.features[:, 0], torch.tensor([1.0, 1.0, 2.0, 2.0]))
    kept.merge(kept)
    assert kept.n == 8
    path = tmp_path / "rows.safetensors"
    kept.save(path)
    loaded = FeatureRows.load(path)
    assert torch.equal(loaded.features, kept.features) and loaded.features.dtype == torch.float32
    assert (loaded.protocol, loaded.source) == (PROTOCOL, "real")
    assert torch.equal(loaded.statistics().mean, kept.features.double().mean(0))
    loaded.statistics().save(path)
    with pytest.raises(UserError, match="holds statistics of format 1, should be rows of format 1"):
        FeatureRows.load(path)


def test_package_names_are_what_they_say() -> None:
    for name in evaluation.__all__:
        assert getattr(evaluation, name).__name__ == name
    assert evaluation.FeatureStatistics is FeatureStatistics


def test_docstring_examples() -> None:
    result = doctest.testmod(states)
    assert result.attempted
    assert not result.failed
