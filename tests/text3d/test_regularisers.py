"""Regularisers and schedules against numbers worked out by hand."""

import math

import pytest
import torch

from diffdistill.errors import UserError
from diffdistill.text3d.regularisers import LinearSchedule, eikonal, opaque, orientation, sparsity, z_variance


def test_sparsity_and_opacity_are_the_published_means() -> None:
    opacity = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert float(sparsity(opacity)) == pytest.approx((0.1 + math.sqrt(1.01) + 2 * math.sqrt(0.26)) / 4)
    edge = -(0.001 * math.log(0.001) + 0.999 * math.log(0.999))
    assert float(opaque(opacity)) == pytest.approx((2 * edge + 2 * math.log(2)) / 4)
    half = torch.tensor([0.3, 0.7, 0.0, 1.0], requires_grad=True)
    opaque(half).backward()
    assert half.grad is not None  # (log(1 - o) - log(o)) / n: away from a half, and none at the ends
    torch.testing.assert_close(half.grad[:2], torch.tensor([math.log(7 / 3), -math.log(7 / 3)]) / 4)


def test_eikonal_is_zero_for_true_distances_alone() -> None:
    unit = torch.nn.functional.normalize(torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert float(eikonal(unit)) < 1e-12 and float(eikonal(3 * unit)) == pytest.approx(4)
    flat = torch.zeros(2, 3, requires_grad=True)
    eikonal(flat).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_orientation_counts_surfaces_that_look_away() -> None:
    directions = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    normals = torch.tensor([[[2.0, 0, 0], [-1, 1, 0]], [[0, 1, 0], [-5, 0, 0]], [[0, 0, 1], [0, 0, 1]]])
    weights = torch.tensor([[0.5, 0.4], [0.2, 0.1], [0.0, 0.0]], requires_grad=True)
    normals.requires_grad_()
    found = orientation(weights, normals, directions)
    assert found.item() == pytest.approx((0.4 * 0.5 + 0.1 * 1) / 2)  # two of the rays hit something
    found.backward()
    assert weights.grad is None and normals.grad is not None
    assert orientation(torch.zeros(3, 2), normals, directions).item() == 0


def test_z_variance_is_that_of_the_opaque_rays() -> None:
    weights = torch.tensor([[[0.5, 0.5], [1.0, 0.0], [0.2, 0.2]]], requires_grad=True)
    places = torch.tensor([[1.0, 3.0], [1.0, 9.0], [1.0, 2.0]])
    found = z_variance(weights, places)
    assert found.item() == pytest.approx((1.0 + 0.0) / 2)  # depths 2 and 1; the third ray is not opaque
    found.backward()
    assert weights.grad is not None and not weights.grad[0, 2].any()
    assert float(z_variance(torch.zeros(3, 2), places)) == 0


def test_schedules_stay_go_and_stay() -> None:
    opacity = LinearSchedule(0.8, 0.0, 10.0, 1.0)
    assert [opacity(share) for share in (0.0, 0.8, 0.9, 1.0)] == pytest.approx([0.0, 0.0, 5.0, 10.0])
    step = LinearSchedule(0.5, 1.0, 2.0, 0.5)
    assert (step(0.49), step(0.5)) == (1.0, 2.0)
    assert {LinearSchedule.constant(3.0)(share) for share in (0.0, 0.4, 1.0)} == {3.0}
    for start, end in ((0.5, 0.4), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(UserError, match="0 <= start <= end <= 1"):
            LinearSchedule(start, 0.0, 1.0, end)
