"""InfoNCE against loops written out, on one process and on two."""

import math

import pytest
import torch
from processes import in_two_processes
from torch import Tensor, distributed

from diffdistill.distill import SampleRandom, info_nce


def by_loops(queries: Tensor, keys: Tensor, tau: float, positives: list[int]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i, own in enumerate(positives):
        q = queries[i] / queries[i].square().sum().sqrt()
        scores = [q @ (k / k.square().sum().sqrt()) / tau for k in keys]
        total = total - (scores[own] - torch.stack([s.exp() for s in scores]).sum().log())
    return 2 * tau * total / len(positives)


def drawn(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tau", [0.1, 0.2, 1.0])
def test_it_equals_the_loops_and_so_does_its_gradient(tau: float) -> None:
    queries, keys = drawn(6, 0).requires_grad_(), drawn(6, 1)
    other = queries.detach().double().requires_grad_()
    ours, theirs = info_nce(queries, keys, tau), by_loops(other, keys.double(), tau, list(range(6)))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    assert torch.allclose(queries.grad.double(), other.grad, atol=1e-6)


def test_positives_may_be_any_rows() -> None:
    queries, keys, rows = drawn(3, 0), drawn(8, 1), [6, 0, 3]
    assert info_nce(queries, keys, 0.2, torch.tensor(rows)).item() == pytest.approx(
        by_loops(queries.double(), keys.double(), 0.2, rows).item(), rel=1e-6
    )


def test_keys_that_are_all_alike_give_the_value_of_chance() -> None:
    assert info_nce(drawn(4, 0), torch.ones(16, 5), 0.5).item() == pytest.approx(math.log(16))


def test_bad_input_is_refused() -> None:
    for queries, keys in ((drawn(3, 0), drawn(2, 0)), (drawn(3, 0), torch.ones(3, 4)), (torch.ones(3), torch.ones(3))):
        with pytest.raises(ValueError, match="expected"):
            info_nce(queries, keys)
    with pytest.raises(ValueError, match="temperature"):
        info_nce(drawn(2, 0), drawn(2, 0), 0.0)


def of_two_processes() -> None:
    """Each has every second sample; mean loss and mean gradient are those of the whole batch."""
    from diffdistill.methods.self_distillation import Contrast, SelfDistillation

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    mine = list(range(rank, 8, 2))
    weight = torch.eye(5, requires_grad=True)  # what data-parallel training averages the gradient of
    contrast = object.__new__(Contrast)
    contrast.settings = SelfDistillation(temperature=0.3)
    heads = {"heads": lambda features: features @ weight}
    loss = contrast.loss(drawn(8, 0)[mine], drawn(8, 1)[mine], SampleRandom(0, mine), heads)  # type: ignore[arg-type]
    loss.backward()
    for value in (mean := loss.detach().clone(), weight.grad):
        distributed.all_reduce(value)
        value /= 2
    whole = torch.eye(5, dtype=torch.float64, requires_grad=True)
    expected = by_loops(drawn(8, 0).double() @ whole, drawn(8, 1).double(), 0.3, list(range(8)))
    expected.backward()
    assert abs(mean.item() - expected.item()) < 1e-5
    assert torch.allclose(weight.grad.double(), whole.grad, atol=1e-5)
    distributed.destroy_process_group()


def test_two_processes_have_each_others_keys() -> None:
    in_two_processes(of_two_processes)
