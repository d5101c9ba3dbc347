"""InfoNCE of two processes, each with every second sample, beside loops over the whole batch."""

import torch
from torch import Tensor, distributed

from diffdistill.distill import SampleRandom
from diffdistill.methods.self_distillation import Contrast, SelfDistillation


def by_loops(queries: Tensor, keys: Tensor, tau: float, positives: list[int]) -> Tensor:
    """The loss of the definition, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for i, own in enumerate(positives):
        q = queries[i] / queries[i].square().sum().sqrt()
        scores = [q @ (k / k.square().sum().sqrt()) / tau for k in keys]
        total = total - (scores[own] - torch.stack([s.exp() for s in scores]).sum().log())
    return 2 * tau * total / len(positives)


def drawn(rows: int, seed: int) -> Tensor:
    """Normal numbers (rows, 5)."""
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


def of_two_processes() -> None:
    """Mean loss and mean gradient over processes are those of the whole batch."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    mine = list(range(rank, 8, 2))
    weight = torch.eye(5, requires_grad=True)  # what data-parallel training averages the gradient of
    contrast = object.__new__(Contrast)
    contrast.settings = SelfDistillation(temperature=0.3)
    heads = {"heads": lambda features: features @ weight}
    loss = contrast.loss(drawn(8, 0)[mine], drawn(8, 1)[mine], SampleRandom(0, mine), heads)  # type: ignore[arg-type]
    loss.backward()
    mean, gradient = loss.detach().clone(), weight.grad
    assert gradient is not None
    for value in (mean, gradient):
        distributed.all_reduce(value)
        value /= 2
    whole = torch.eye(5, dtype=torch.float64, requires_grad=True)
    expected = by_loops(drawn(8, 0).double() @ whole, drawn(8, 1).double(), 0.3, list(range(8)))
    expected.backward()
    assert abs(mean.item() - expected.item()) < 1e-5
    assert whole.grad is not None and torch.allclose(gradient.double(), whole.grad, atol=1e-5)
    distributed.destroy_process_group()
