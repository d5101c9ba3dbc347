"""InfoNCE, the contrastive loss of self-distillation, as in MoCo v3 (arXiv 2104.02057).

    q_i, k_j of unit length,  L = 2 tau * mean_i -log( exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau) )

q_i comes from one view of image i, and k_i from another view of the same image by an average of the network. The other
keys of the batch are the negatives. The factor 2 tau makes the gradient's size nearly independent of tau.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.2, positives: Tensor | None = None) -> Tensor:
    """The contrastive loss, the mean over queries.

    Args:
        queries: features (B, D), of any length.
        keys: features (N, D) of any length, used as constants; N >= B.
        temperature: tau, above 0.
        positives: (B,), int64, the row of each query's own key; None for row i of query i.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes do not fit, or the temperature is not above 0.

    >>> x = torch.eye(4)
    >>> round(info_nce(x, x, 1.0).item(), 4)  # 2 log((e + 3) / e)
    1.4873
    """
    if queries.dim() != 2 or keys.dim() != 2 or queries.shape[1] != keys.shape[1] or len(keys) < len(queries):
        raise ValueError(
            f"queries have shape {tuple(queries.shape)}, keys {tuple(keys.shape)}; expected (B, D) and (N, D), N >= B"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature is {temperature}; it must be above 0")
    rows = torch.arange(len(queries), device=queries.device) if positives is None else positives
    with torch.autocast(queries.device.type, enabled=False):  # a product of unit vectors over tau needs all its digits
        logits = normalize(queries.float(), dim=1) @ normalize(keys.detach().float(), dim=1).T / temperature
        return 2 * temperature * cross_entropy(logits, rows)
