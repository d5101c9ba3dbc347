"""Neighbour numbers against loops over exact distances, torch-fidelity, and cases one can count by hand."""

import doctest

import pytest
import torch
from torch import Tensor

from diffdistill.evaluation.distances import neighbours
from diffdistill.evaluation.distances.neighbours import nearest, prdc


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(generated: Tensor, reference: Tensor, k_precision: int, k_density: int) -> tuple[float, ...]:
    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm())

    def radius(rows: Tensor, i: int, k: int) -> float:
        return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    m, n = range(len(generated)), range(len(reference))
    real = [radius(reference, j, k_precision) for j in n]
    fake = [radius(generated, i, k_precision) for i in m]
    dense = [radius(reference, j, k_density) for j in n]
    d = [[distance(generated[i], reference[j]) for j in n] for i in m]
    return (
        sum(any(d[i][j] <= real[j] for j in n) for i in m) / len(m),
        sum(any(d[i][j] <= fake[i] for i in m) for j in n) / len(n),
        sum(d[i][j] <= dense[j] for i in m for j in n) / (k_density * len(m)),
        sum(any(d[i][j] <= dense[j] for i in m) for j in n) / len(n),
    )


@pytest.mark.parametrize("tile", [1, 7, 2048])
@pytest.mark.parametrize(("k_precision", "k_density"), [(3, 5), (4, 2), (1, 1)])
def test_equals_loops(tile: int, k_precision: int, k_density: int) -> None:
    generated, reference = normal(19, 3, seed=0) * 0.7 + 0.5, normal(23, 3, seed=1)
    found = prdc(generated, reference, k_precision, k_density, tile=tile)
    assert found == pytest.approx(by_loops(generated, reference, k_precision, k_density), rel=1e-12)
    assert min(found) > 0


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("tile", [4, 7, 2048])
def test_copies_and_ties_are_inside_however_tiles_round(offset: float, tile: int) -> None:
    reference = normal(40, 64, seed=0) + offset
    found = prdc(reference.flip(0), reference, tile=tile)
    # Each ball holds its centre and its k neighbours, the last of them on the surface.
    assert found == (1, 1, 6 / 5, 1)
    collapsed = prdc(reference[:1].repeat(9, 1), reference, tile=tile)
    assert collapsed.precision == 1 and collapsed.recall == 1 / 40  # balls of radius zero around one row


def test_a_lost_mode_and_an_invented_one() -> None:
    """Two far modes in the reference; the generator has one of them, and one of its own."""
    left, right, own = (normal(30, 4, seed=s) * 0.01 + 100 * s for s in (0, 1, 2))
    reference = torch.cat([left, right])
    found = prdc(torch.cat([left, own]), reference)
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert (found.density, found.coverage) == (0.5 * 6 / 5, 0.5)


def test_density_of_equal_distributions_is_one_on_average() -> None:
    found = torch.tensor([prdc(normal(60, 4, seed=s), normal(50, 4, seed=500 + s)) for s in range(60)])
    density = found[:, 2]
    assert abs(density.mean() - 1) < 3 * density.std() / 60**0.5


def test_precision_and_recall_equal_torch_fidelity() -> None:
    reference_module = pytest.importorskip("torch_fidelity.metric_prc")
    generated, reference = normal(200, 16, seed=0) * 0.8 + 0.2, normal(150, 16, seed=1)
    theirs = reference_module.prc_features_to_metric(
        generated, reference, prc_neighborhood=3, prc_batch_size=64, save_cpu_ram=True, verbose=False
    )
    found = prdc(generated.float(), reference.float())
    assert 0 < found.precision < 1 and 0 < found.recall < 1
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)


@pytest.mark.parametrize("tile", [1, 5, 2048])
@pytest.mark.parametrize("k", [1, 4, 23])
def test_nearest_equals_sorting(tile: int, k: int) -> None:
    x, reference = normal(9, 6, seed=0), normal(23, 6, seed=1)
    distances, indices = (x[:, None] - reference[None]).norm(dim=-1).sort(1)
    found = nearest(x, reference, k, tile=tile)
    assert torch.equal(found[0], indices[:, :k])
    torch.testing.assert_close(found[1], distances[:, :k], rtol=1e-14, atol=0)


def test_a_copy_of_a_training_image_is_at_zero() -> None:
    reference = (normal(300, 512, seed=0) + 1e3).float()
    indices, distances = nearest(reference[[17, 250]], reference, k=2)
    assert indices[:, 0].tolist() == [17, 250]
    assert distances[:, 0].tolist() == [0, 0]
    assert bool((distances[:, 1] > 10).all())


def test_bad_input_is_named() -> None:
    x = normal(6, 3, seed=0)
    with pytest.raises(ValueError, match="k should be at least 1, got 0 and 5"):
        prdc(x, x, k_precision=0)
    with pytest.raises(ValueError, match="x should have at least 4 rows, got 3"):
        prdc(x[:3], x)
    with pytest.raises(ValueError, match="more rows than k_density = 6, got 6"):
        prdc(x, x, k_density=6)
    with pytest.raises(ValueError, match="k should be from 1 to 6, got 7"):
        nearest(x, x, k=7)
    with pytest.raises(ValueError, match="not finite"):
        nearest(x / 0, x)


def test_docstring_examples() -> None:
    result = doctest.testmod(neighbours)
    assert result.attempted
    assert not result.failed
