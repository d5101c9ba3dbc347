"""Quick numbers and diversity, against their definitions."""

import doctest

import pytest
import torch

from diffdistill.evaluation import quick
from diffdistill.evaluation.distances.frechet import frechet_distance
from diffdistill.evaluation.distances.kernel import kernel_distance
from diffdistill.evaluation.quick import diversity, quick_numbers


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_quick_numbers_hold_both_distances() -> None:
    x, y = normal(20, 6, seed=0), normal(30, 6, seed=1) + 0.5
    kd, kd_se = kernel_distance(x, y)
    assert quick_numbers(x, y) == {
        "kd": kd,
        "kd_se": kd_se,
        "fd": frechet_distance(x, y),
        "n": 20,
        "n_reference": 30,
    }


def test_diversity_is_the_mean_over_groups_of_the_mean_over_pairs() -> None:
    x = normal(6, 4, seed=0)
    groups = ["a", "b", "a", "lonely", "a", "b"]
    a = ((x[0] - x[2]).norm() + (x[0] - x[4]).norm() + (x[2] - x[4]).norm()) / 3
    expected = float((a + (x[1] - x[5]).norm()) / 2)
    assert diversity(x, groups) == pytest.approx(expected, rel=1e-6)
    assert diversity(x, torch.tensor([0, 1, 0, 2, 0, 1])) == diversity(x, groups)
    assert diversity(x[:1].repeat(4, 1), ["a", "a", "b", "b"]) == 0
    with pytest.raises(ValueError, match="no group has two images"):
        diversity(x, range(6))
    with pytest.raises(ValueError, match="5 labels"):
        diversity(x, range(5))


def test_docstring_examples() -> None:
    result = doctest.testmod(quick)
    assert result.attempted
    assert not result.failed
