"""Distances against double loops, brute-force jackknife, and closed forms of Gaussians."""

import doctest
import math

import pytest
import torch
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.evaluation.distances import frechet
from diffdistill.evaluation.distances import kernel as distances
from diffdistill.evaluation.distances.frechet import (
    frechet_distance,
    frechet_distance_from_moments,
    frechet_distance_infinity,
    frechet_distance_of,
    frechet_terms,
)
from diffdistill.evaluation.distances.kernel import biased_kernel_distance, kernel_distance, kernel_distance_subsets
from diffdistill.evaluation.features.statistics import FeatureStatistics


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """n rows whose sample mean and (n - 1) sample covariance are exactly `mean` and root^T root."""
    z = normal(n, len(mean), seed=seed)
    z = torch.linalg.qr(z - z.mean(0)).Q * math.sqrt(n - 1)  # centred columns stay centred
    return z @ root + mean


def naive_kernel_distance(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("tile", [1, 3, 4, 2048])
def test_kernel_distance_equals_double_loop(tile: int) -> None:
    x, y = normal(11, 5, seed=0), normal(7, 5, seed=1) + 0.3
    kd, _ = kernel_distance(x, y, tile=tile)
    assert kd == pytest.approx(naive_kernel_distance(x, y), rel=1e-12)


@pytest.mark.parametrize("tile", [2, 2048])
def test_standard_error_equals_brute_force_jackknife(tile: int) -> None:
    x, y = normal(6, 4, seed=2), normal(9, 4, seed=3) + 0.5
    variance = 0.0
    for name, full in (("x", x), ("y", y)):
        left_out = []
        for i in range(len(full)):
            rest = torch.cat([full[:i], full[i + 1 :]])
            left_out.append(naive_kernel_distance(*((rest, y) if name == "x" else (x, rest))))
        variance += torch.tensor(left_out, dtype=torch.float64).var(correction=0).item() * (len(full) - 1)
    assert kernel_distance(x, y, tile=tile)[1] == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    values = torch.tensor([kernel_distance(normal(8, 6, seed=s), normal(12, 6, seed=5000 + s))[0] for s in range(600)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert values.min() < 0


def test_standard_error_matches_the_spread_over_draws() -> None:
    drawn = [kernel_distance(normal(60, 6, seed=s), normal(80, 6, seed=5000 + s) + 0.7) for s in range(200)]
    kd, standard_error = torch.tensor(drawn, dtype=torch.float64).unbind(1)
    assert 0.85 < standard_error.square().mean().sqrt() / kd.std() < 1.2


@pytest.mark.parametrize(("m", "n"), [(50, 70), (5, 70), (70, 5), (6, 4)])
def test_frechet_of_axis_aligned_moments(m: int, n: int) -> None:
    """Diagonal covariances commute: |dm|^2 + sum (s - r)^2. Few rows span only the first axes."""
    d = 8
    s, r = torch.arange(1, d + 1).double(), torch.arange(d, 0, -1).double()
    s[m - 1 :], r[n - 1 :] = 0, 0
    shift = torch.linspace(-1, 1, d, dtype=torch.float64)

    def rows(count: int, scale: Tensor, mean: Tensor, seed: int) -> Tensor:
        rank = min(count - 1, d)
        return (
            with_moments(count, torch.zeros(rank).double(), torch.eye(rank).double(), seed)
            @ torch.eye(rank, d).double()
            * scale
            + mean
        )

    x, y = rows(m, s, torch.zeros(d).double(), 0), rows(n, r, shift, 1)
    expected = float(shift.square().sum() + (s - r).square().sum())
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("block", [1, 7, 20, 256])
def test_frechet_routes_agree_on_full_rank_covariances(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(frechet, "_BLOCK", block)
    x = normal(90, 20, seed=0) @ normal(20, 20, seed=1)
    y = normal(70, 20, seed=2) @ normal(20, 20, seed=3) + 1
    from_moments = frechet_distance_from_moments(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(from_moments, rel=1e-8)
    eigenvalues = torch.linalg.eigvals(x.T.cov() @ y.T.cov())  # the textbook form
    textbook = (x.mean(0) - y.mean(0)).square().sum() + x.T.cov().trace() + y.T.cov().trace()
    assert from_moments == pytest.approx(float(textbook - 2 * eigenvalues.sqrt().real.sum()), rel=1e-8)


@pytest.mark.parametrize("block", [7, 256])
def test_frechet_routes_agree_on_singular_covariances(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(frechet, "_BLOCK", block)
    x, y = normal(10, 20, seed=0), normal(15, 20, seed=1) * 2
    moments = x.mean(0), x.T.cov(), y.mean(0), y.T.cov()
    before = [moment.clone() for moment in moments]
    assert frechet_distance(x, y) == pytest.approx(frechet_distance_from_moments(*moments), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(moments, before, strict=True))


@pytest.mark.parametrize("n", [12, 60])
def test_frechet_of_identical_sets_is_zero(n: int) -> None:
    x = normal(n, 24, seed=0)
    x[:, 5] = 0  # a dead feature
    assert frechet_distance(x, x) < 1e-10
    assert frechet_distance(x, x.flip(0)) < 1e-10


def test_distances_are_symmetric_and_take_float32() -> None:
    x, y = normal(30, 10, seed=0).float(), normal(20, 10, seed=1).float() + 1
    for distance in (frechet_distance, lambda a, b: kernel_distance(a, b)[0]):
        assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-12)
        assert distance(x, y) == pytest.approx(distance(x.double(), y.double()), rel=1e-12)


def statistics(x: Tensor, **kwargs: object) -> FeatureStatistics:
    streamed = FeatureStatistics(x.shape[1], **kwargs)
    streamed.update(x)
    return streamed


@pytest.mark.parametrize(("m", "n"), [(10, 15), (10, 700), (700, 10), (24, 700), (25, 700), (500, 700)])
def test_streamed_sets_take_the_route_that_fits(m: int, n: int) -> None:
    mix = normal(24, 24, seed=2)
    x, y = normal(m, 24, seed=0) @ mix, normal(n, 24, seed=1) + 1
    terms = frechet_terms(statistics(x), statistics(y))
    assert terms.total == frechet_distance_of(statistics(x), statistics(y)) == sum(terms)
    assert terms.total == pytest.approx(frechet_distance(x, y), rel=1e-10 if max(m, n) < 24 else 1e-8)
    assert terms.mean_term == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum()), rel=1e-10)
    assert frechet_terms(statistics(y), statistics(x)).total == pytest.approx(terms.total, rel=1e-12)
    assert frechet_distance_of(statistics(x), statistics(x)) < 1e-7 * float(x.var(0).sum())


def test_features_that_never_vary_cost_no_digits() -> None:
    x, y = normal(300, 20, seed=0), normal(400, 20, seed=1) @ normal(20, 20, seed=2)
    x[:, [3, 4]], y[:, 4], y[:, 7] = 0, 0, 0
    # Exact in x, where a square root of noise would leave 1e-8.
    assert frechet_distance_of(statistics(x), statistics(y)) == pytest.approx(frechet_distance(x, y), rel=1e-11)


def test_streamed_sets_of_other_protocols_or_sizes_are_refused() -> None:
    x = normal(30, 5, seed=0)
    with pytest.raises(UserError, match="resize is 299 and 256"):
        frechet_terms(statistics(x, protocol={"resize": 299}), statistics(x, protocol={"resize": 256}))
    with pytest.raises(ValueError, match="got 5 and 4"):
        frechet_terms(statistics(x), statistics(x[:, :4]))
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_terms(statistics(x), statistics(x[:1]))


@pytest.mark.parametrize("route", ["full rank", "rank deficient"])
def test_frechet_equals_scipy(route: str) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(500, 60, seed=0) @ normal(60, 60, seed=1), normal(400, 60, seed=2) + 0.3
    if route == "rank deficient":
        x, y = x[:40], y[:50]
    root = torch.from_numpy(linalg.sqrtm((x.T.cov() @ y.T.cov()).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (x.T.cov() + y.T.cov() - 2 * root).trace()
    tolerance = 1e-8 if route == "full rank" else 1e-5  # sqrtm's own, where eigenvalues are zero
    assert frechet_distance_of(statistics(x), statistics(y)) == pytest.approx(float(expected), rel=tolerance)


def test_frechet_equals_torchmetrics_and_torch_fidelity() -> None:
    x, y = normal(500, 30, seed=0) @ normal(30, 30, seed=1), normal(400, 30, seed=2) + 0.3
    ours = frechet_distance_of(statistics(x), statistics(y))
    theirs = pytest.importorskip("torch_fidelity.metric_fid").fid_statistics_to_metric(
        *({"mu": z.mean(0).numpy(), "sigma": z.T.cov().numpy()} for z in (x, y)), False
    )
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8)

    class Features(torch.nn.Module):
        num_features = 30

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    metric = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(
        feature=Features(), input_img_size=(1, 5, 6)
    )
    for features, real in ((x, False), (y, True)):
        for batch in features.view(-1, 1, 5, 6).split(64):
            metric.update(batch, real=real)
    assert ours == pytest.approx(float(metric.compute()), rel=1e-8)


def test_kernel_distance_over_subsets_equals_its_definition() -> None:
    x, y = normal(11, 5, seed=0), normal(7, 5, seed=1) + 0.3
    indices = torch.tensor([[0, 3, 9], [10, 2, 1]]), torch.tensor([[6, 1, 0], [2, 3, 4]])
    values = torch.tensor([naive_kernel_distance(x[i], y[j]) for i, j in zip(*indices, strict=True)])
    expected = float(values.mean()), float(values.std(correction=0))
    assert kernel_distance_subsets(x, y, indices=indices) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_over_random_subsets() -> None:
    x, y = normal(60, 5, seed=0), normal(50, 5, seed=1) + 0.3
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = kernel_distance_subsets(x, y, subset_size=20, subsets=200, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn == kernel_distance_subsets(x, y, subset_size=20, subsets=200, seed=3)
    assert drawn != kernel_distance_subsets(x, y, subset_size=20, subsets=200, seed=4)
    every_pair, _ = kernel_distance(x, y)  # what the mean tends to
    assert drawn[0] == pytest.approx(every_pair, abs=4 * drawn[1] / math.sqrt(200))
    whole = kernel_distance_subsets(x[:50], y, subset_size=50, subsets=3)
    assert whole == pytest.approx((kernel_distance(x[:50], y)[0], 0), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_kernel_distance_equals_torch_fidelity_on_its_subsets(dtype: torch.dtype, tolerance: float) -> None:
    numpy = pytest.importorskip("numpy")
    reference = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = normal(300, 64, seed=0).to(dtype), (normal(250, 64, seed=1) + 0.3).to(dtype)
    theirs = reference.kid_features_to_metric(
        x, y, kid_subsets=10, kid_subset_size=100, rng_seed=2020, verbose=False, kid_kernel="poly"
    )
    random = numpy.random.RandomState(2020)
    drawn = [(random.choice(300, 100, replace=False), random.choice(250, 100, replace=False)) for _ in range(10)]
    indices = tuple(torch.from_numpy(numpy.stack(rows)) for rows in zip(*drawn, strict=True))
    mean, deviation = kernel_distance_subsets(x, y, indices=indices)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=tolerance)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=100 * tolerance)


def test_bad_subsets_are_named() -> None:
    x = normal(9, 3, seed=0)
    good = torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match="subset_size should be from 2 to 7, got 8"):
        kernel_distance_subsets(x, x[:7], subset_size=8)
    with pytest.raises(ValueError, match="subsets should be at least 1, got 0"):
        kernel_distance_subsets(x, x, subset_size=4, subsets=0)
    with pytest.raises(ValueError, match=r"got \[\(1, 3\), \(1, 2\)\]"):
        kernel_distance_subsets(x, x, indices=(good, good[:, :2]))
    with pytest.raises(ValueError, match=r"indices into y should lie in 0..8, got up to 9"):
        kernel_distance_subsets(x, x, indices=(good, good + 7))


def test_extrapolation_removes_the_bias() -> None:
    """A Gaussian with the reference's own moments: the distance is zero, its estimate at n rows is not."""
    d = 10
    reference = statistics(with_moments(4000, torch.zeros(d).double(), torch.eye(d).double(), seed=0))
    found = [frechet_distance_infinity(normal(2000, d, seed=s), reference, seed=s) for s in range(1, 13)]
    plain = torch.tensor([result.distances[-1] for result in found])
    extrapolated = torch.tensor([result.distance for result in found])
    assert plain.mean() > 5 * plain.std() / math.sqrt(12)
    assert extrapolated.mean().abs() < 0.25 * plain.mean()
    first = found[0]
    assert first.sizes[0] == 200 and first.sizes[-1] == 2000 and len(first.sizes) == len(first.distances) == 15
    assert first == frechet_distance_infinity(normal(2000, d, seed=1), reference, seed=1)
    assert first != frechet_distance_infinity(normal(2000, d, seed=1), reference, seed=2)


def test_extrapolation_is_the_intercept_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(frechet, "frechet_distance_of", lambda x, y: 3 + 50 / x.n)
    found = frechet_distance_infinity(normal(600, 2, seed=0), FeatureStatistics(2), smallest=100, points=6)
    assert found.sizes == (100, 200, 300, 400, 500, 600)
    assert found.distance == pytest.approx(3, rel=1e-12) and found.standard_error < 1e-12
    values = iter([0.1, 0.5, 0.2, 0.4, 0.9, 0.3])
    monkeypatch.setattr(frechet, "frechet_distance_of", lambda x, y: next(values))
    found = frechet_distance_infinity(normal(600, 2, seed=0), FeatureStatistics(2), smallest=100, points=6)
    fit, covariance = numpy.polyfit([1 / n for n in found.sizes], found.distances, 1, cov=True)
    assert found.distance == pytest.approx(fit[1], rel=1e-10)
    assert found.standard_error == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-10)
    with pytest.raises(ValueError, match="points >= 3 and smallest from 2 to 599, got 2 and 60"):
        frechet_distance_infinity(normal(600, 2, seed=0), FeatureStatistics(2), points=2)


@pytest.mark.parametrize("distance", [kernel_distance, frechet_distance])
def test_bad_input_is_named(distance) -> None:
    good = normal(5, 3, seed=0)
    broken = good.clone()
    broken[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"x should have shape \(n, d\), got \(15,\)"):
        distance(good.flatten(), good)
    with pytest.raises(ValueError, match="got 3 and 2"):
        distance(good, good[:, :2])
    with pytest.raises(ValueError, match="y should have at least"):
        distance(good, good[:1])
    with pytest.raises(ValueError, match="y holds values that are not finite, in 1 of 5 rows"):
        distance(good, broken)
    with pytest.raises(ValueError, match="floating point"):
        distance(good.long(), good)


@pytest.mark.parametrize("module", [distances, frechet])
def test_docstring_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_the_biased_distance_is_the_unbiased_one_with_the_diagonals() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=draw), torch.randn(9, 5, generator=draw) + 0.3

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.double() @ b.double().T / 5 + 1) ** 3

    expected = float(k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean())
    assert biased_kernel_distance(x, y, tile=4) == pytest.approx(expected, rel=1e-12)
    assert biased_kernel_distance(x, x.clone()) == 0 and biased_kernel_distance(x, y) > kernel_distance(x, y)[0]
