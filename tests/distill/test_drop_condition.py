"""Rows of a condition are replaced one by one, in whatever the condition is made of."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from diffdistill.distill import drop_condition

MASK = torch.tensor([True, False, True])


class Pair(NamedTuple):
    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Text:
    tokens: Tensor
    mask: Tensor
    name: str = "clip"


def cond() -> Tensor:
    return torch.arange(1.0, 13.0).view(3, 2, 2)


def test_rows_of_a_tensor() -> None:
    before = cond()
    after = drop_condition(before, torch.zeros(1, 2, 2), MASK)
    assert torch.equal(after[1], before[1]) and not after[[0, 2]].any()
    assert torch.equal(before, cond())
    per_row = drop_condition(before, -before, MASK)
    assert torch.equal(per_row[2], -before[2])


def test_structures() -> None:
    full, empty = cond(), torch.zeros(1, 2, 2)
    expected = drop_condition(full, empty, MASK)
    mapping = drop_condition({"a": full, "b": [full, None, 3]}, {"a": empty, "b": [empty, None, 3]}, MASK)
    assert torch.equal(mapping["a"], expected) and torch.equal(mapping["b"][0], expected)
    assert mapping["b"][1:] == [None, 3]
    pair = drop_condition(Pair(full, full), Pair(empty, empty), MASK)
    assert isinstance(pair, Pair) and torch.equal(pair.pooled, expected)
    text = drop_condition(Text(full, full > 0), Text(empty, empty > 0), MASK)
    assert isinstance(text, Text) and torch.equal(text.tokens, expected) and text.mask.dtype == torch.bool
    assert drop_condition(None, None, MASK) is None


def test_low_precision_stays() -> None:
    assert drop_condition(cond().bfloat16(), torch.zeros(1, 2, 2), MASK).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("null", "mask", "match"),
    [
        (torch.zeros(1, 3, 2), MASK, "null condition"),
        (torch.zeros(2, 2, 2), MASK, "null condition"),
        (None, MASK, "null condition is NoneType"),
        (torch.zeros(1, 2, 2), MASK[:2], "mask"),
        (torch.zeros(1, 2, 2), MASK.float(), "mask"),
    ],
)
def test_mismatches_are_errors(null: Tensor | None, mask: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        drop_condition(cond(), null, mask)


def test_structures_that_differ_are_errors() -> None:
    full = cond()
    for condition, null in (({"a": full}, {"b": full}), ([full], [full, full]), (Text(full, full), full)):
        with pytest.raises(ValueError, match="null condition"):
            drop_condition(condition, null, MASK)
