"""The alignments of DiT-IC (arXiv 2603.13162), as functions of tensors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cosine_alignment(x0: Tensor, target: Tensor, margin: float = 0.5) -> Tensor:
    """mean(relu(1 - margin - cos)), the cosine over channels at each place (eq. 4, as released)."""
    return F.relu(1 - margin - F.cosine_similarity(x0, target, dim=1)).mean()
