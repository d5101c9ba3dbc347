"""Several jobs at a time, in threads, whose lines still come in the order of the inputs."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from diffdistill.errors import UserError

if TYPE_CHECKING:
    from diffdistill.cli.codec.jobs import Job


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the option --jobs."""
    parser.add_argument(
        "-j",
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="files that are processed at a time, at most one a core (default: 1); each takes memory of "
        "its own, some 30 bytes a pixel and 500 MB",
    )


def check_jobs(count: int) -> None:
    """Raise UserError for a number of jobs that is below 1."""
    if count < 1:
        raise UserError(f"--jobs is {count}; it must be 1 or more")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_each(jobs: int, cores: int, threads: int) -> tuple[int, int]:
    """How many jobs run at a time, and torch's threads in each: never more than one thread a core together.

    Args:
        jobs: that were asked for.
        cores: that there are.
        threads: of torch without jobs.

    >>> threads_of_each(3, 8, 8), threads_of_each(4, 2, 2), threads_of_each(2, 8, 1)
    ((3, 2), (2, 1), (2, 1))
    """
    at_a_time = min(jobs, cores)
    return at_a_time, max(1, min(threads, cores // at_a_time))


def in_order(
    found: Sequence[Job], work: Callable[[Job], dict[str, Any]], jobs: int
) -> Iterator[tuple[Job, Callable[[], dict[str, Any]]]]:
    """Each job, with a function that waits for its result or raises its error.

    Args:
        found: the jobs.
        work: does one; it is called from several threads if `jobs` is above 1.
        jobs: how many run at a time.
    """
    if jobs == 1 or len(found) == 1:
        for job in found:
            yield job, functools.partial(work, job)
        return
    import torch

    at_a_time, threads = threads_of_each(jobs, cores(), torch.get_num_threads())
    with ThreadPoolExecutor(at_a_time, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        waiting = [(job, pool.submit(work, job)) for job in found]
        try:
            for job, future in waiting:
                yield job, future.result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
