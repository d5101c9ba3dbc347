"""Some rows of a condition, whatever it is made of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def take_rows(cond: Any, rows: Tensor) -> Any:
    """The rows of each tensor in a condition: a tensor, or mappings, lists and tuples of such.

    A tensor whose first dimension is 1 is shared by the batch and expanded; what is no tensor stays.

    Args:
        cond: the condition of a batch.
        rows: places in the batch, (R,), int64.

    >>> import torch
    >>> take_rows({"a": torch.arange(4), "b": None}, torch.tensor([2, 0]))
    {'a': tensor([2, 0]), 'b': None}
    """
    if isinstance(cond, Tensor):
        return cond.expand(len(rows), *cond.shape[1:]) if cond.dim() and len(cond) == 1 else cond[rows]
    if isinstance(cond, Mapping):
        return {key: take_rows(value, rows) for key, value in cond.items()}
    if isinstance(cond, list | tuple):
        parts = [take_rows(value, rows) for value in cond]
        return type(cond)(*parts) if hasattr(cond, "_fields") else type(cond)(parts)
    return cond
