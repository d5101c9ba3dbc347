"""The alignments of a one-step codec's decoder, and the length of its step, as in DiT-IC (arXiv 2603.13162).

    x0, the latent after the step   -- cosine ------ the clean latent of the autoencoder   (self-distillation, eq. 4)
    the condition, pooled           -- contrastive - an embedding of the same image        (latent condition, eq. 5-6)
    the scales of the entropy model -- rho --------- the length of the step                (variance guidance, eq. 2-3)

All are pure functions of tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MARGIN = 0.5  # of the released code; the paper's text has 0.1
LEAST_STEP, STEP_SLOPE, LARGE_SCALE = 0.4, 0.15, 4.0


def cosine_alignment(x0: Tensor, target: Tensor, margin: float = MARGIN) -> Tensor:
    """The self-distillation loss of DiT-IC (eq. 4): mean of max(0, 1 - margin - cos), of each sample.

    The cosine is that of the channels at each position. Positions that are aligned well enough have no gradient. The
    released code weighs this loss by 0.05.

    Args:
        x0: (B, K, h, w), the latent after the step.
        target: (B, K, h, w), the clean latent; it gets no gradient.
        margin: 1 - margin is the cosine that is good enough.

    Returns:
        (B,), each in [0, 2 - margin].

    >>> x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    >>> float(cosine_alignment(x, 2 * x)), float(cosine_alignment(-x, x))
    (0.0, 1.5)
    """
    cosine = F.cosine_similarity(x0.float(), target.detach().float(), dim=1)
    return F.relu(1 - margin - cosine).mean((1, 2))


def contrastive_alignment(a: Tensor, b: Tensor, log_temperature: Tensor) -> Tensor:
    """The loss of the latent condition of DiT-IC (eq. 5-6): symmetric InfoNCE, as in CLIP (arXiv 2103.00020).

    Row i of `a` should be nearer to row i of `b` than to any other row, and the other way round. In the paper `b`
    embeds a caption. Where there is no text, `b` can embed the clean latent.

    Args:
        a: (B, D), embeddings of the condition.
        b: (B, D), embeddings of what it is aligned with.
        log_temperature: a scalar, natural logarithm of the temperature by which cosines are divided.

    Returns:
        A scalar from 0; log B where all cosines are equal.

    Raises:
        ValueError: the shapes differ, or are not (B, D).

    >>> equal = torch.ones(4, 3)
    >>> torch.allclose(contrastive_alignment(equal, equal, torch.tensor(0.0)), torch.tensor(4.0).log())
    True
    """
    if a.shape != b.shape or a.dim() != 2:
        raise ValueError(f"the embeddings are of shapes {tuple(a.shape)} and {tuple(b.shape)}; both should be (B, D)")
    a, b = (F.normalize(x.float(), dim=1) for x in (a, b))
    logits = a @ b.T / log_temperature.float().exp()
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def released_step(s: Tensor) -> Tensor:
    """rho(s), the length of the step at each element, as in DiT-IC's released code.

    It is 0.4 + 0.15 |s| where |s| < 4, and 1 elsewhere, so it is continuous. The paper has a time at each place instead
    (eq. 2-3), F(proj(s)).

    Args:
        s: scales, of any shape.

    Returns:
        The same shape, in [0.4, 1].

    >>> [round(x, 2) for x in released_step(torch.tensor([0.0, 1.0, -2.0, 4.0, 9.0])).tolist()]
    [0.4, 0.55, 0.7, 1.0, 1.0]
    """
    size = s.abs()
    return torch.where(size < LARGE_SCALE, LEAST_STEP + STEP_SLOPE * size, 1.0)
