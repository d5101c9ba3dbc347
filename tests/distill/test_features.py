"""The distance of features against sums written out, and its properties."""

import pytest
import torch

from diffdistill.distill import feature_distance


def test_it_is_the_sum_over_maps_of_the_mean_squared_distance_of_unit_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    a = [torch.randn(2, 5, 4, 4, generator=generator), torch.randn(2, 3, 2, 2, generator=generator)]
    b = [torch.randn(2, 5, 4, 4, generator=generator), torch.randn(2, 3, 2, 2, generator=generator)]
    expected = 0.0
    for x, y in zip(a, b, strict=True):
        found = []
        for n in range(2):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    u, v = x[n, :, i, j], y[n, :, i, j]
                    found.append(2 - 2 * float(u @ v / (u.norm() * v.norm())))  # |u|=|v|=1
        expected += sum(found) / len(found)
    assert float(feature_distance(a, b)) == pytest.approx(expected, rel=1e-5)


def test_the_length_of_features_does_not_count_and_opposite_ones_are_furthest() -> None:
    x = torch.randn(2, 5, 4, 4)
    assert float(feature_distance([x], [7 * x])) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance([x, x], [-x, x])) == pytest.approx(4, abs=1e-5)


def test_its_gradient_is_that_of_float64() -> None:
    a = torch.randn(2, 3, 2, 2, requires_grad=True)
    b = torch.randn(2, 3, 2, 2)
    (ours,) = torch.autograd.grad(feature_distance([a], [b]), a)
    c = a.detach().double().requires_grad_(True)
    u, v = (t / t.norm(dim=1, keepdim=True) for t in (c, b.double()))
    (theirs,) = torch.autograd.grad((u - v).square().sum(1).mean(), c)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-6)


def test_zero_features_give_no_nan() -> None:
    a = torch.zeros(1, 3, 2, 2, requires_grad=True)
    value = feature_distance([a], [torch.zeros(1, 3, 2, 2)])
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0 and a.grad is not None and bool(a.grad.isfinite().all())


def test_numbers_of_maps_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="1 maps and 0"):
        feature_distance([torch.zeros(1, 1, 1, 1)], [])
