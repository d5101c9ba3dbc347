"""Which process this is: a launcher's word, and what other programs leave in the environment."""

import os

import pytest

from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [
        (None, None, (0, 1)),
        ("1", None, (0, 1)),
        ("3", "", (0, 1)),
        ("", "2", (0, 2)),
        ("1", "2", (1, 2)),
        ("0", "0", (0, 1)),
    ],
)
def test_a_rank_counts_only_among_several_processes(rank: str | None, size: str | None, expected: tuple) -> None:
    given = {"RANK": rank, "WORLD_SIZE": size}
    assert rank_and_processes({name: value for name, value in given.items() if value is not None}) == expected


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "two"}, {"WORLD_SIZE": "-1"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_what_is_no_number_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match="unset"):
        rank_and_processes(environment)


def test_empty_variables_are_taken_out_of_the_way_of_others_that_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert rank_and_processes() == (0, 1)
    assert "WORLD_SIZE" not in os.environ and "LOCAL_RANK" not in os.environ
