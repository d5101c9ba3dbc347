"""Which of how many processes this one is, as a launcher says it in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from diffdistill.errors import UserError

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def rank_and_processes(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's number, from 0, and the number of processes; 0 and 1 where no launcher started several.

    Raises:
        UserError: RANK or WORLD_SIZE is no number, or they do not fit each other.

    >>> rank_and_processes({"RANK": "1", "WORLD_SIZE": "2"}), rank_and_processes({"RANK": "1"})
    ((1, 2), (0, 1))
    """
    found = {}
    for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")):
        value = environment.get(name, "").strip() or default
        if not value.isdecimal():
            raise UserError(f"{name} is {value!r} in the environment; a launcher sets it to a number, so unset it")
        found[name] = int(value)
    for name in NAMES:
        if environment is os.environ and not os.environ.get(name, "unset").strip():
            del os.environ[name]  # set but empty, which torch and accelerate cannot read
    rank, processes = found["RANK"], max(1, found["WORLD_SIZE"])
    if processes == 1:  # a RANK left over from another program
        return 0, 1
    if rank >= processes:
        raise UserError(
            f"RANK is {rank} and WORLD_SIZE {processes} in the environment; it should be less, so unset both"
        )
    return rank, processes


def is_first() -> bool:
    """Whether this process is the first one, which alone prints and writes."""
    return rank_and_processes()[0] == 0
