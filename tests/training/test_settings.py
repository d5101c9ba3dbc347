"""Numbers that would train wrongly without a word are refused."""

import pytest

from diffdistill.errors import UserError
from diffdistill.training.settings import TrainingSettings


@pytest.mark.parametrize(
    "bad",
    [
        {"max_grad_norm": 0.0}, {"max_grad_norm": -1.0}, {"warmup_samples": -1}, {"max_minutes": -1.0},
        {"checkpoint_every": -5}, {"batch_size": 0}, {"ema_decay": 1.5}, {"samples": 65},
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named(bad: dict) -> None:
    key = next(iter(bad))
    with pytest.raises(
        UserError, match=f"training.{key} {'' if key == 'samples' else 'is '}{next(iter(bad.values()))}"
    ):
        TrainingSettings(**{"samples": 64, **bad}).check(1)
