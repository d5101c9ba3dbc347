"""Rows set aside: a partition, the same one every time."""

import pytest
import torch

from diffdistill.evaluation.distances.floor import set_aside
from diffdistill.evaluation.features.feature_rows import FeatureRows


def test_rows_set_aside_and_the_others_are_all_rows_once() -> None:
    rows = FeatureRows(1, {"extractor": "tiny"}, "numbers")
    rows.update(torch.arange(20.0)[:, None])
    aside, others = set_aside(rows, 6)
    assert (aside.n, others.n) == (6, 14)
    assert sorted([*aside.features.flatten().tolist(), *others.features.flatten().tolist()]) == list(range(20))
    assert aside.features.flatten().tolist() != list(range(6))
    assert torch.equal(set_aside(rows, 6)[0].features, aside.features)
    assert aside.protocol == rows.protocol and aside.source == "numbers"
    assert set_aside(rows, 20)[1].n == 0
    with pytest.raises(ValueError, match=r"n should be in \[0, 20\], got 21"):
        set_aside(rows, 21)
