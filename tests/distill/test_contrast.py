"""InfoNCE against loops written out, on one process and on two."""

import math

import pytest
import torch
from contrast_in_two import by_loops, drawn, of_two_processes
from processes import in_two_processes

from diffdistill.distill import info_nce


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


def test_two_processes_have_each_others_keys() -> None:
    in_two_processes(of_two_processes)
