"""Distances against double loops, brute-force jackknife, and closed forms of Gaussians."""

import doctest
import math

import pytest
import torch
from torch import Tensor

from diffdistill.evaluation import distances
from diffdistill.evaluation.distances import frechet_distance, frechet_distance_from_moments, kernel_distance


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


def test_frechet_routes_agree_on_full_rank_covariances() -> None:
    x = normal(90, 20, seed=0) @ normal(20, 20, seed=1)
    y = normal(70, 20, seed=2) @ normal(20, 20, seed=3) + 1
    from_moments = frechet_distance_from_moments(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(from_moments, rel=1e-8)
    eigenvalues = torch.linalg.eigvals(x.T.cov() @ y.T.cov())  # the textbook form
    textbook = (x.mean(0) - y.mean(0)).square().sum() + x.T.cov().trace() + y.T.cov().trace()
    assert from_moments == pytest.approx(float(textbook - 2 * eigenvalues.sqrt().real.sum()), rel=1e-8)


def test_frechet_routes_agree_on_singular_covariances() -> None:
    x, y = normal(10, 20, seed=0), normal(15, 20, seed=1) * 2
    from_moments = frechet_distance_from_moments(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(from_moments, rel=1e-5)


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


def test_docstring_examples() -> None:
    result = doctest.testmod(distances)
    assert result.attempted
    assert not result.failed
