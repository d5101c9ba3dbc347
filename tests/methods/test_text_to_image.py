"""Inputs that the teacher's recipe cannot use are refused before anything is made."""

from pathlib import Path

import pytest
import tiny_pipeline as tiny
from made import made

from diffdistill.errors import UserError
from diffdistill.methods import LatentDiffusion

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"augmentation__shift": -1}, "shift"),
        ({"augmentation__variants": 0}, "variants"),
        ({"augmentation__recolour": 2.0}, "recolour"),
    ],
)
def test_numbers_out_of_range_are_named(bad: dict, what: str) -> None:
    with pytest.raises(UserError, match=what):
        made(LatentDiffusion, data__source=str(ASSETS / "emoji"), **bad)


def test_a_start_from_another_schedule_is_refused(tmp_path: Path) -> None:
    other = str(tiny.save_tiny_pipeline(tmp_path / "tiny"))
    with pytest.raises(UserError, match="cosine schedule"):
        made(LatentDiffusion, data__source=str(ASSETS / "emoji"), network__init_from=other)
