"""Inception score against closed forms, its definition, and torch-fidelity."""

import doctest
import math

import pytest
import torch
from torch import Tensor

from diffdistill.evaluation.distances import inception_score as module
from diffdistill.evaluation.distances.inception_score import inception_score


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(logits: Tensor) -> float:
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    marginal = p.mean(0)
    divergences = [sum(float(a * math.log(a / b)) for a, b in zip(row, marginal, strict=True)) for row in p]
    return math.exp(sum(divergences) / len(divergences))


def test_equals_its_definition_split_by_split() -> None:
    logits = normal(11, 5, seed=0) * 2
    scores = [by_definition(logits[:3]), by_definition(logits[3:7]), by_definition(logits[7:])]
    expected = torch.tensor(scores, dtype=torch.float64)
    found = inception_score(logits, splits=3)
    assert found == pytest.approx((float(expected.mean()), float(expected.std(correction=0))), rel=1e-12)


def test_two_kinds_of_certain_and_uncertain_images() -> None:
    """One half says p, the other q: exp of their Jensen-Shannon divergence."""
    p, q = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([[0.2, 0.8]], dtype=torch.float64)
    middle = (p + q) / 2
    divergence = (p * (p / middle).log() + q * (q / middle).log()).sum() / 2
    logits = torch.cat([p, q]).log().repeat(6, 1)
    assert inception_score(logits, splits=1)[0] == pytest.approx(float(divergence.exp()), rel=1e-12)
    assert inception_score(logits[:1].repeat(6, 1), splits=2) == pytest.approx((1, 0), abs=1e-12)


def test_certainty_is_not_nan() -> None:
    certain = 1e4 * torch.eye(7, 9)
    assert inception_score(certain, splits=1) == pytest.approx((7, 0), rel=1e-12)
    assert inception_score(certain.repeat(20, 1), splits=10) == pytest.approx((7, 0), rel=1e-12)


def test_order_matters_with_splits_and_only_then() -> None:
    images = 5 * torch.eye(4).repeat_interleave(25, 0)  # sorted by class
    mixed = images.view(4, 25, 4).transpose(0, 1).reshape(100, 4)
    assert inception_score(images, splits=1) == pytest.approx(inception_score(mixed, splits=1), rel=1e-12)
    assert inception_score(images, splits=4)[0] == pytest.approx(1, rel=1e-12)
    assert inception_score(mixed, splits=4)[0] > 2
    shuffled = inception_score(images, splits=4, shuffle_seed=0)
    assert shuffled[0] > 2
    assert shuffled == inception_score(images, splits=4, shuffle_seed=0)
    assert shuffled != inception_score(images, splits=4, shuffle_seed=1)


@pytest.mark.parametrize("splits", [1, 10])
def test_equals_torch_fidelity(splits: int) -> None:
    numpy = pytest.importorskip("numpy")
    reference = pytest.importorskip("torch_fidelity.metric_isc")
    logits = (normal(203, 20, seed=0) * 3).float()
    for shuffle in (False, True):
        theirs = reference.isc_features_to_metric(logits, splits=splits, shuffle=shuffle, rng_seed=2020)
        order = numpy.random.RandomState(2020).permutation(203) if shuffle else numpy.arange(203)
        ours = inception_score(logits[torch.from_numpy(order)], splits)
        expected = theirs["inception_score_mean"], theirs["inception_score_std"]
        assert ours == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_bad_input_is_named() -> None:
    logits = normal(6, 3, seed=0)
    with pytest.raises(ValueError, match=r"\(N, classes\), got \(18,\)"):
        inception_score(logits.flatten())
    with pytest.raises(ValueError, match="floating point, got torch.int64"):
        inception_score(logits.long())
    for splits in (0, 7):
        with pytest.raises(ValueError, match=f"from 1 to the 6 rows there are, got {splits}"):
            inception_score(logits, splits)
    with pytest.raises(ValueError, match="not finite, in 6 rows"):
        inception_score(logits / 0, 2)


def test_docstring_examples() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
