"""CMMD against its definition, pair by pair, and against what float32 makes of it."""

import doctest

import pytest
import torch
from torch import Tensor

from diffdistill.evaluation.distances import cmmd as mmd
from diffdistill.evaluation.distances import kernel as distances
from diffdistill.evaluation.distances.cmmd import cmmd


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x: Tensor, y: Tensor, unbiased: bool, sigma: float = 10.0) -> float:
    x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * sigma**2))

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return values[~torch.eye(len(a), dtype=torch.bool)].mean() if unbiased else values.mean()

    return float(1000 * (within(x) + within(y) - 2 * kernel(x, y).mean()))


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("tile", [3, 2048])
def test_cmmd_equals_its_definition(monkeypatch: pytest.MonkeyPatch, unbiased: bool, tile: int) -> None:
    x, y = normal(17, 8, seed=0), normal(11, 8, seed=1) + 0.5
    monkeypatch.setattr(distances.kernel_sums, "__defaults__", (tile,))
    assert cmmd(x, y, unbiased) == pytest.approx(by_definition(x, y, unbiased), rel=1e-10)
    assert cmmd(x, y, unbiased, sigma=0.5) == pytest.approx(by_definition(x, y, unbiased, 0.5), rel=1e-12)
    assert cmmd(x, y, unbiased, scale=1.0) == pytest.approx(cmmd(x, y, unbiased) / 1000, rel=1e-12)
    assert cmmd(y, x, unbiased) == pytest.approx(cmmd(x, y, unbiased), rel=1e-10)


def test_cmmd_does_not_depend_on_lengths() -> None:
    x, y = normal(17, 8, seed=0), normal(11, 8, seed=1) + 0.5
    assert cmmd(x * 7, y / 3) == pytest.approx(cmmd(x, y), rel=1e-12)
    assert cmmd(x.half(), y.half()) == pytest.approx(cmmd(x, y), rel=1e-2)


def test_equal_sets_are_at_zero_and_only_the_unbiased_value_has_mean_zero() -> None:
    x = normal(20, 8, seed=0)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-12)
    pairs = [(normal(20, 8, seed=s), normal(30, 8, seed=900 + s)) for s in range(200)]
    unbiased = torch.tensor([cmmd(a, b, unbiased=True) for a, b in pairs])
    assert abs(unbiased.mean()) < 3 * unbiased.std() / 200**0.5 and unbiased.min() < 0
    # Off the diagonal |a - b|^2 is 2 on average: what the diagonal adds is known.
    bias = 1000 * (1 / 20 + 1 / 30) * (1 - torch.exp(torch.tensor(-1 / 100)))
    biased = torch.tensor([cmmd(a, b) for a, b in pairs])
    assert biased.mean() == pytest.approx(float(bias), rel=0.05)


def test_digits_are_kept_that_a_float32_kernel_loses() -> None:
    x, y = normal(600, 64, seed=0) + 0.5, normal(600, 64, seed=1) + 0.51
    expected = by_definition(x, y, unbiased=True)
    assert cmmd(x.float(), y.float(), unbiased=True) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert abs(by_definition(x.float(), y.float(), unbiased=True) - expected) > 1e-5


def test_bad_input_is_named() -> None:
    x = normal(5, 3, seed=0)
    empty = x.clone()
    empty[2] = 0
    with pytest.raises(ValueError, match="y has a row of length zero, the first is 2"):
        cmmd(x, empty)
    with pytest.raises(ValueError, match="sigma should be positive, got 0"):
        cmmd(x, x, sigma=0)
    with pytest.raises(ValueError, match="one feature size, got 3 and 2"):
        cmmd(x, x[:, :2])
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        cmmd(x, x[:1])


def test_docstring_examples() -> None:
    result = doctest.testmod(mmd)
    assert result.attempted
    assert not result.failed
