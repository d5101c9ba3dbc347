"""Replacing the condition of some samples by the empty one, so that one network learns both scores."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def drop_condition(cond: Any, null: Any, mask: Tensor) -> Any:
    """The condition with the rows where mask is true taken from null.

    The decision is a sample's own (`SampleRandom.bernoulli`), not one for the whole batch, so it does not
    depend on how samples are spread over processes.

    Args:
        cond: a tensor of shape (B, ...), or mappings, lists, tuples and dataclasses of such tensors. Anything
            else in them (None, numbers, strings) is shared by the batch and stays.
        null: of the same structure, each tensor of the same shape or with a batch of 1.
        mask: Tensor of shape (B,), bool.

    Returns:
        A new condition; the arguments stay as they are.

    Raises:
        ValueError: structures or shapes do not match.

    >>> drop_condition(torch.ones(3, 2), torch.zeros(1, 2), torch.tensor([True, False, True]))[:, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    if isinstance(cond, Tensor):
        return _drop_rows(cond, null, mask)
    if isinstance(cond, Mapping):
        if not isinstance(null, Mapping) or cond.keys() != null.keys():
            raise ValueError(f"the null condition must have the keys of the condition: {sorted(cond)}")
        return {key: drop_condition(value, null[key], mask) for key, value in cond.items()}
    if isinstance(cond, list | tuple):
        if not isinstance(null, list | tuple) or len(cond) != len(null):
            raise ValueError(f"the null condition must be a sequence of {len(cond)} parts, like the condition")
        parts = [drop_condition(value, empty, mask) for value, empty in zip(cond, null, strict=True)]
        if hasattr(cond, "_fields"):  # a named tuple takes its parts one by one
            return type(cond)(*parts)
        return type(cond)(parts)
    if is_dataclass(cond) and not isinstance(cond, type):
        if type(cond) is not type(null):
            raise ValueError(f"the null condition must be a {type(cond).__name__} like the condition")
        names = [field.name for field in fields(cond) if field.init]
        return replace(cond, **{n: drop_condition(getattr(cond, n), getattr(null, n), mask) for n in names})
    return cond


def _drop_rows(cond: Tensor, null: Any, mask: Tensor) -> Tensor:
    if not isinstance(null, Tensor) or null.shape[1:] != cond.shape[1:] or len(null) not in (1, len(cond)):
        found = tuple(null.shape) if isinstance(null, Tensor) else type(null).__name__
        raise ValueError(f"the null condition is {found}; it must be (1 or {len(cond)}, *{tuple(cond.shape[1:])})")
    if mask.shape != (len(cond),) or mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool, ({len(cond)},)")
    return torch.where(mask.view(-1, *[1] * (cond.dim() - 1)), null.to(cond), cond)
