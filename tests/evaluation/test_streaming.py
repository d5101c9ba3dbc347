"""Each distance that is fed by batches, against the pure function on all rows at once; files and lazy names."""

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diffdistill.evaluation as evaluation
from diffdistill.errors import UserError
from diffdistill.evaluation.distances import streaming
from diffdistill.evaluation.distances.cmmd import cmmd
from diffdistill.evaluation.distances.frechet import frechet_distance
from diffdistill.evaluation.distances.inception_score import inception_score
from diffdistill.evaluation.distances.kernel import kernel_distance, kernel_distance_subsets
from diffdistill.evaluation.distances.neighbours import prdc
from diffdistill.evaluation.distances.streaming import (
    CMMD,
    PRDC,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    SetDistance,
)
from diffdistill.evaluation.features.base import Extractor
from diffdistill.evaluation.features.feature_rows import FeatureRows
from diffdistill.evaluation.features.statistics import FeatureStatistics

PROTOCOL = {"extractor": "tiny"}


class Quarters(Extractor):
    """The mean of each quarter of an image's red: features one can work out by hand."""

    name, dim, resize, weights_sha256 = "quarters", 4, "none", "0" * 64
    device = torch.device("cpu")

    def prepare(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images[:, :1].float(), 2)

    def network(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(300, 12, seed=0), normal(280, 12, seed=1) + 0.4


def rows(features: Tensor = Y) -> FeatureRows:
    kept = FeatureRows(features.shape[1], PROTOCOL, "real")
    kept.update(features)
    return kept


CASES: dict[str, tuple[Callable[[], SetDistance], Callable[[], object]]] = {
    "fd": (lambda: FrechetDistance(reference=rows().statistics()), lambda: frechet_distance(X, Y)),
    "kd": (lambda: KernelDistance(reference=rows()), lambda: kernel_distance(X, Y)),
    "kid": (
        lambda: KernelDistance(reference=rows(), subset_size=50, subsets=4, seed=7),
        lambda: kernel_distance_subsets(X, Y, 50, 4, 7),
    ),
    "cmmd": (lambda: CMMD(reference=rows(), unbiased=True), lambda: cmmd(X, Y, unbiased=True)),
    "prdc": (lambda: PRDC(reference=rows(), k_precision=2, k_density=4), lambda: prdc(X, Y, 2, 4)),
    "is": (lambda: InceptionScore(12, splits=3, shuffle_seed=1), lambda: inception_score(X, 3, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_distance_fed_by_batches_is_the_function_of_all_rows(case: str) -> None:
    make, function = CASES[case]
    state = make()
    for batch in X.split(37):
        state.update(batch)
    found = state.compute()
    assert found == pytest.approx(function(), rel=1e-9)

    for batch_size in (1, 300):
        again = make()
        for batch in X.split(batch_size):
            again.update(batch)
        assert again.compute() == found  # bit for bit
    assert again.all_reduce().compute() == found

    first, second = make(), make()
    first.update(X[:120])
    second.update(X[120:])
    first.merge_state(second)
    assert first.compute() == pytest.approx(found, rel=1e-10)
    second.reset()
    with pytest.raises(ValueError):
        second.compute()
    second.update(X)
    assert second.compute() == found

    called = make()
    part = called(X[:120])
    assert part == first_of(make, X[:120]) != found  # the value of the batch alone
    called(X[120:])
    assert called.compute() == pytest.approx(found, rel=1e-10)


def first_of(make: Callable[[], SetDistance], batch: Tensor) -> object:
    state = make()
    state.update(batch)
    return state.compute()


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance, PRDC, CMMD])
def test_real_rows_that_come_in_batches_are_the_reference(kind: type[SetDistance]) -> None:
    given = kind(reference=rows().statistics() if kind is FrechetDistance else rows())
    given.update(X)
    whole = kind(features=12)
    halves = [kind(features=12), kind(features=12)]
    for i, batch in enumerate(Y.split(50)):
        assert whole(batch, real=True) is None
        halves[i > 2].update(batch, real=True)
    for i, batch in enumerate(X.split(90)):
        whole.update(batch)
        halves[i > 1].update(batch)
    assert whole.compute() == given.compute()
    assert whole.all_reduce().compute() == given.compute()
    halves[0].merge_state(halves[1])
    assert halves[0].compute() == pytest.approx(given.compute(), rel=1e-9)
    whole.reset()
    whole.update(X)
    assert whole.compute() == given.compute()  # the real rows stayed
    whole.reset(real=True)
    whole.update(X)
    with pytest.raises(ValueError):
        whole.compute()
    given.reset(real=True)
    given.update(X)
    with pytest.raises(ValueError, match="the reference was given"):
        given.update(Y, real=True)
    other = kind(reference=given.real)
    other.update(X[:150])
    given.reset()
    given.update(X[150:])
    other.merge_state(given)
    assert other.real.n == 280 and other.generated.n == 300  # the reference is counted once


def test_images_are_measured_as_the_extractor_does() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=draw) for _ in range(2))
    extract = Quarters()
    distance = FrechetDistance(extract)
    for images in b.split(7):
        distance.update(images, real=True)
    distance.update(a[:12])
    distance.update(a[12:].float() / 255)  # floats are rounded to 8 bits
    assert distance.compute() == pytest.approx(frechet_distance(extract(a).double(), extract(b).double()), rel=1e-9)
    assert distance.terms().total == distance.compute() and distance.protocol == extract.protocol
    mixed = KernelDistance(extract, subset_size=None)
    mixed.update([a[0], torch.zeros(3, 4, 6)], real=True)
    assert torch.equal(mixed.real.features[0], extract(a[:1])[0])
    mixed.update(extract(a))  # features are taken beside images
    assert mixed.generated.n == 20
    with pytest.raises(ValueError, match="images need an extractor"):
        KernelDistance(features=4).update(a)
    with pytest.raises(ValueError, match=r"should lie in \[0, 1\]"):
        mixed.update(a.float())
    with pytest.raises(ValueError, match="needs class logits, and quarters gives features"):
        InceptionScore(extract)
    with pytest.raises(ValueError, match="generated images alone"):
        InceptionScore(4).update(torch.zeros(2, 4), real=True)


@pytest.mark.parametrize("kind", [KernelDistance, CMMD, PRDC, FrechetDistance])
def test_another_protocol_is_refused_before_work(kind: type[SetDistance]) -> None:
    reference = rows().statistics() if kind is FrechetDistance else rows()
    with pytest.raises(UserError, match='generated and real .* extractor is "quarters" and "tiny"'):
        kind(Quarters(), reference)
    with pytest.raises(ValueError, match="size 12 as the reference's, got 5"):
        kind(5, reference)
    with pytest.raises(ValueError, match="name features .* or give a reference"):
        kind()
    with pytest.raises(ValueError, match=r"shape \(N, 12\), got \(3, 5\)"):
        kind(reference=reference).update(torch.zeros(3, 5))


def test_distances_of_other_protocols_do_not_merge() -> None:
    with pytest.raises(UserError, match='extractor is "quarters" and absent'):
        KernelDistance(Quarters()).merge_state(KernelDistance(4))
    with pytest.raises(ValueError, match="size 12, got 10"):
        InceptionScore(12).merge_state(InceptionScore(10))


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
        assert name.isupper() or getattr(evaluation, name).__name__ == name
    assert evaluation.FeatureStatistics is FeatureStatistics


def test_docstring_examples() -> None:
    result = doctest.testmod(streaming)
    assert result.attempted
    assert not result.failed
