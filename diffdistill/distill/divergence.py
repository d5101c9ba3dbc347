"""f-divergences for score distillation: a weight on each sample by a discriminator's density ratio.

    D_f(p || q) = E_q f(r), r = p / q:   its gradient is that of the reverse KL divergence times h(r) = r^2 f''(r)

This is f-distill (Xu et al. 2025, arXiv 2502.15681): p is the teacher's density at x_t and q that of the generator.
Score distillation is the row of h = 1, and seeks modes. Where h grows with r, samples that the teacher makes more often
than the generator weigh more. The logit of a trained discriminator, teacher against generator, is log r.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .tables import look_up

DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {  # name: h(r)
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "jensen_shannon": lambda r: r / (1 + r),
    "hellinger": torch.sqrt,
    "jeffreys": lambda r: 1 + r,
    "softened_reverse_kl": lambda r: 1 / (1 + r),
}


def divergence_weights(logits: Tensor, divergence: str, least: float = 0.1, most: float = 10.0) -> Tensor:
    """h(r) / h(1) of each sample.

    It is a function of the sample alone, so it depends neither on how a batch is cut nor on the number of processes.
    f-distill divides by the mean over the batch, within ranges of t, in place of h(1).

    Args:
        logits: log r of B samples, of shape (B,) or (B, 1). A graph on them is ignored.
        divergence: a name in `DIVERGENCES`.
        least, most: r is clamped to this range, because the logits of an imperfect discriminator are too sure.

    Returns:
        Tensor of shape (B,), float32; 1 where teacher and generator are equally likely.

    Raises:
        ValueError: an unknown divergence, or logits of another shape.

    >>> divergence_weights(torch.tensor([1.0, 4.0]).log(), "hellinger").tolist()
    [1.0, 2.0]
    """
    h = look_up(DIVERGENCES, divergence, "divergence")
    if logits.ndim > 2 or logits.numel() != len(logits):
        raise ValueError(f"logits have shape {tuple(logits.shape)}; one for each sample is (B,) or (B, 1)")
    r = logits.detach().float().reshape(-1).clamp(-30, 30).exp().clamp(least, most)
    return h(r) / h(torch.ones_like(r))
