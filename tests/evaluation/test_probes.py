"""Probes against scikit-learn, closed forms and loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from diffdistill.evaluation.probes.geometry import alignment, uniformity
from diffdistill.evaluation.probes.linear import (
    Standardiser,
    knn_accuracy,
    linear_accuracy,
    logistic_regression,
    recoverability_gap,
    ridge_regression,
)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(return_X_y=True)  # real 8 x 8 pictures; three of 64 features are constant
    return torch.from_numpy(x), torch.from_numpy(y)


def test_the_linear_probe_is_scikit_learns(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = digits
    scaler = StandardScaler().fit(x[:1000])
    theirs = LogisticRegression(C=1.0, max_iter=5000, tol=1e-8).fit(scaler.transform(x[:1000]), y[:1000])
    assert linear_accuracy(x[:1000], y[:1000], x[1000:], y[1000:], 10) == pytest.approx(
        theirs.score(scaler.transform(x[1000:]), y[1000:]), abs=2e-3
    )
    weight, bias = logistic_regression(Standardiser.of(x[:1000])(x[:1000]), y[:1000], 10)
    assert np.abs(weight.numpy() - theirs.coef_).max() < 2e-3
    assert np.abs((bias - bias.mean()).numpy() - (theirs.intercept_ - theirs.intercept_.mean())).max() < 2e-3


def test_the_gradient_vanishes_at_its_minimum(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = Standardiser.of(digits[0][:300])(digits[0][:300]), digits[1][:300]
    weight, bias = logistic_regression(x, y, 10, strength=3.0)
    off = (x @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(y, 10)
    assert (off.T @ x + 3.0 * weight).abs().max() < 1e-3 and off.sum(0).abs().max() < 1e-3


def test_neighbours_are_scikit_learns(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = digits
    scaler = StandardScaler().fit(x[:1000])
    theirs = KNeighborsClassifier(1).fit(normalize(scaler.transform(x[:1000])), y[:1000])
    expected = theirs.score(normalize(scaler.transform(x[1000:])), y[1000:])
    assert knn_accuracy(x[:1000], y[:1000], x[1000:], y[1000:], 10, k=1) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="k is 1001"):
        knn_accuracy(x[:1000], y[:1000], x[1000:], y[1000:], 10, k=1001)


def test_ridge_is_its_closed_form_and_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=generator, dtype=torch.float64) + 3
    y = torch.randn(50, 4, generator=generator, dtype=torch.float64) - 1
    weight, bias = ridge_regression(x, y, 2.5)
    theirs = Ridge(alpha=2.5).fit(x, y)
    assert np.abs(weight.numpy().T - theirs.coef_).max() < 1e-10
    assert np.abs(bias.numpy() - theirs.intercept_).max() < 1e-10
    # the penalty as rows of data: least squares of [X; sqrt(2.5) I] against [Y; 0]
    centred = torch.cat([x - x.mean(0), math.sqrt(2.5) * torch.eye(7, dtype=torch.float64)])
    by_rows = torch.linalg.lstsq(centred, torch.cat([y - y.mean(0), torch.zeros(7, 4, dtype=torch.float64)])).solution
    assert torch.allclose(weight, by_rows, atol=1e-10)


def test_the_gap_is_zero_for_a_linear_map_and_one_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator)
    linear, noise = x @ torch.randn(6, 9, generator=generator) + 2, torch.randn(4000, 9, generator=generator)
    assert recoverability_gap(x[:3000], linear[:3000], x[3000:], linear[3000:]) < 1e-3
    assert recoverability_gap(x[:3000], noise[:3000], x[3000:], noise[3000:]) == pytest.approx(1.0, abs=0.02)
    half = linear + linear.std() * torch.randn(4000, 9, generator=generator)  # as much noise as signal, on the whole
    assert 0.35 < recoverability_gap(x[:3000], half[:3000], x[3000:], half[3000:]) < 0.65


def test_alignment_and_uniformity_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator)
    unit = [row / row.norm() for row in a.double()]
    pairs = [(unit[i] - unit[j]).norm() ** 2 for i in range(9) for j in range(i)]
    assert uniformity(a) == pytest.approx(math.log(sum(math.exp(-2 * d) for d in pairs) / len(pairs)))
    others = [row / row.norm() for row in b.double()]
    expected = sum((u - v).norm() ** 2 for u, v in zip(unit, others, strict=True)) / 9
    assert alignment(a, b) == pytest.approx(expected.item())
    assert alignment(a, -a) == pytest.approx(4.0) and uniformity(torch.ones(5, 3)) == pytest.approx(0.0)


def test_bad_features_are_refused() -> None:
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 2])
    with pytest.raises(ValueError, match="there are 2 classes"):
        logistic_regression(x, y, 2)
    with pytest.raises(ValueError, match="not finite"):
        logistic_regression(torch.full((6, 2), float("nan")), y, 3)
    with pytest.raises(ValueError, match="expected"):
        ridge_regression(x, torch.ones(5, 1))
