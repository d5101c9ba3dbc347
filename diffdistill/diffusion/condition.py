"""What a score model is conditioned on: one shape for it, and everything that is done with it.

    Condition = Tensor | Mapping[str, Tensor | None] | None

    tensor     one row per sample, of shape (B, ...): embeddings (B, L, D), token ids (B, L), class labels (B,)
    mapping    several parts by name: {"text": (B, L, D), "pooled": (B, D), "camera": (B, 16)}; a part may be None,
               which is a part that is absent
    None       no condition

A tensor whose first dimension is 1 is shared by all samples of the batch: the empty prompt, say. Lists, tuples,
dataclasses and nested mappings are refused, so no function has to guess what is in them.

Denoisers, guidance, losses and methods take rows, join and move conditions through this module alone. A condition with
another number of rows than the batch is a ValueError, whoever receives it.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Condition = Tensor | Mapping[str, Tensor | None] | None


def check_condition(cond: Condition, size: int, name: str = "cond") -> None:
    """Raise ValueError unless `cond` is a condition of a batch of `size` samples.

    Args:
        cond: the condition.
        size: B, the number of samples.
        name: what the condition is called in the error.

    Raises:
        ValueError: it is neither a tensor, nor a mapping from names to tensors and None, nor None; or the first
            dimension of a tensor is neither 1 nor `size`.

    >>> check_condition({"text": torch.zeros(3, 5), "pooled": None}, 3)
    >>> check_condition(torch.zeros(2, 5), 3)
    Traceback (most recent call last):
    ValueError: cond has shape (2, 5); its first dimension must be 3, one row per sample, or 1, shared by all
    """
    for key, part in _parts(cond, name).items():
        if part is not None and (part.dim() == 0 or len(part) not in (1, size)):
            raise ValueError(
                f"{_label(name, key)} has shape {tuple(part.shape)}; its first dimension must be {size}, one row per "
                "sample, or 1, shared by all"
            )


def rows_of(cond: Condition, name: str = "cond") -> int | None:
    """The number of rows of a condition; 1 where all its tensors are shared, None where it has no tensor.

    Raises:
        ValueError: not a condition, or parts with different numbers of rows.

    >>> rows_of({"text": torch.zeros(3, 5), "size": torch.zeros(1, 2)})
    3
    """
    parts = {_label(name, key): part for key, part in _parts(cond, name).items() if part is not None}
    size = max((len(part) for part in parts.values() if part.dim()), default=1)
    for label, part in parts.items():
        if part.dim() == 0 or len(part) not in (1, size):
            found = ", ".join(f"{label} {tuple(part.shape)}" for label, part in parts.items())
            raise ValueError(f"the tensors of a condition must have one number of rows, or one row; found {found}")
    return size if parts else None


def take_rows(cond: Condition, rows: Tensor | Sequence[int]) -> Condition:
    """The condition of some samples of the batch, with one row for each.

    Args:
        cond: the condition of the batch. A tensor that is shared by all samples is expanded.
        rows: positions in the batch, R of them: integers, or a tensor of integers of shape (R,).

    Raises:
        ValueError: not a condition, parts with different numbers of rows, or rows that are not positions.
        IndexError: a position outside the batch.

    >>> take_rows({"a": torch.arange(4), "b": None}, torch.tensor([2, 0]))
    {'a': tensor([2, 0]), 'b': None}
    """
    rows_of(cond)
    if isinstance(rows, Tensor) and (rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool):
        raise ValueError(f"rows are {rows.dtype} of shape {tuple(rows.shape)}; they must be integers of shape (R,)")
    index = rows if isinstance(rows, Tensor) else list(rows)
    return _each(lambda part: part.expand(len(index), *part.shape[1:]) if len(part) == 1 else part[index], cond)


def expand(cond: Condition, size: int, name: str = "cond") -> Condition:
    """The condition with `size` rows in each tensor: those with a first dimension of 1 are expanded, not copied.

    Raises:
        ValueError: as for `check_condition`.

    >>> expand(torch.zeros(1, 5), 3).shape
    torch.Size([3, 5])
    """
    check_condition(cond, size, name)
    return _each(lambda part: part.expand(size, *part.shape[1:]), cond)


def repeat(cond: Condition, times: int) -> Condition:
    """Every row `times` times in a row, for several views of one prompt.

    A tensor that is shared by all samples stays as it is: all views share it too.

    Raises:
        ValueError: not a condition, parts with different numbers of rows, or `times` below 1.

    >>> repeat(torch.tensor([5, 7]), 2)
    tensor([5, 5, 7, 7])
    """
    rows_of(cond)
    if times < 1:
        raise ValueError(f"rows are to be repeated {times} times; the number must be 1 or more")
    return _each(lambda part: part if len(part) == 1 else part.repeat_interleave(times, 0), cond)


def concatenate(conds: Mapping[str, Condition], sizes: int | Sequence[int]) -> Condition:
    """One batch from several conditions, in their order.

    Args:
        conds: conditions by the names that errors call them. They must match: all tensors, all mappings with the same
            keys, or all None. A part that is None must be None in all of them. The shapes of a part agree in all
            dimensions but the first.
        sizes: the number of samples of each; a single number where it is the same for all.

    Raises:
        ValueError: conditions that do not match, or one with another number of rows. The message names the part.

    >>> concatenate({"null": torch.tensor([1]), "cond": torch.tensor([5, 6])}, 2)
    tensor([1, 1, 5, 6])
    """
    each = [sizes] * len(conds) if isinstance(sizes, int) else list(sizes)
    if not conds or len(conds) != len(each):
        raise ValueError(f"{len(conds)} conditions and {len(each)} sizes; there must be as many, and one at least")
    full = {name: expand(cond, size, name) for (name, cond), size in zip(conds.items(), each, strict=True)}
    parts = {name: _parts(cond, name) for name, cond in full.items()}
    first = next(iter(full.values()))
    if any(_described(cond) != _described(first) for cond in full.values()):
        found = ", ".join(f"{name} is {_described(cond)}" for name, cond in full.items())
        raise ValueError(f"conditions that are joined must have the same parts: {found}")
    return _built(first, {key: _joined({n: p[key] for n, p in parts.items()}, key) for key in _parts(first, "")})


def drop_condition(cond: Condition, null: Condition, mask: Tensor) -> Condition:
    """The condition with the rows where `mask` is true taken from `null`, so that one network learns both scores.

    The decision is a sample's own (`SampleRandom.bernoulli`), not one for the whole batch, so it does not depend on how
    samples are distributed over processes.

    Args:
        cond: the condition of the batch.
        null: the empty condition, with the same parts, of the same shapes or with one row. It is moved to the device
            and cast to the dtype of `cond`.
        mask: which samples lose their condition, bool, of shape (B,).

    Returns:
        A new condition with B rows; the arguments stay as they are.

    Raises:
        ValueError: the two do not match, or the mask is not bool of shape (B,).

    >>> drop_condition(torch.ones(3, 2), torch.zeros(1, 2), torch.tensor([True, False, True]))[:, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    if mask.dtype != torch.bool or mask.dim() != 1:
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be bool, of shape (B,)")
    cond, null = expand(cond, len(mask)), expand(null, len(mask), "null")
    if _described(cond) != _described(null):
        raise ValueError(f"null is {_described(null)}; it must have the parts of cond, which is {_described(cond)}")
    empty = _parts(null, "null")

    def dropped(key: str, part: Tensor | None) -> Tensor | None:
        other = empty[key]
        _check_shapes({"null": other, "cond": part}, key)
        if part is None or other is None:
            return None
        return torch.where(mask.view(-1, *[1] * (part.dim() - 1)), other.to(part), part)

    return _built(cond, {key: dropped(key, part) for key, part in _parts(cond, "cond").items()})


def move(cond: Condition, device: torch.device | str) -> Condition:
    """The condition on the device.

    Raises:
        ValueError: not a condition.
    """
    return _each(lambda part: part.to(device), cond)


def _parts(cond: Condition, name: str) -> dict[str, Tensor | None]:
    """The parts by key; a bare tensor has the key "". ValueError where it is not a condition."""
    if cond is None:
        return {}
    if isinstance(cond, Tensor):
        return {"": cond}
    if not isinstance(cond, Mapping):
        found = type(cond).__name__
        raise ValueError(f"{name} is a {found}; a condition is a tensor, a mapping from names to tensors, or None")
    for key, part in cond.items():
        if part is not None and not isinstance(part, Tensor):
            raise ValueError(f"{name}[{key!r}] is a {type(part).__name__}; a part of a condition is a tensor or None")
    return dict(cond)


def _label(name: str, key: str) -> str:
    return f"{name}[{key!r}]" if key else name


def _built(like: Condition, parts: Mapping[str, Tensor | None]) -> Condition:
    """A condition of the kind of `like` with other parts."""
    return dict(parts) if isinstance(like, Mapping) else parts.get("")


def _each(change: Callable[[Tensor], Tensor], cond: Condition) -> Condition:
    return _built(cond, {k: None if part is None else change(part) for k, part in _parts(cond, "cond").items()})


def _joined(parts: Mapping[str, Tensor | None], key: str) -> Tensor | None:
    """One part of several conditions, by the conditions' names, in one batch."""
    _check_shapes(parts, key)
    tensors = [part for part in parts.values() if part is not None]
    return torch.cat(tensors) if tensors else None


def _check_shapes(parts: Mapping[str, Tensor | None], key: str) -> None:
    if len({None if part is None else part.shape[1:] for part in parts.values()}) > 1:
        shapes = {name: "absent" if part is None else tuple(part.shape) for name, part in parts.items()}
        found = ", ".join(f"{_label(name, key)} {shape}" for name, shape in shapes.items())
        raise ValueError(f"conditions must have one shape, but for the number of rows; found {found}")


def _described(cond: Condition) -> str:
    """What two conditions that match have in common."""
    if isinstance(cond, Mapping):
        return f"a mapping with the parts {', '.join(sorted(cond)) or 'none'}"
    return "None" if cond is None else "a tensor"
