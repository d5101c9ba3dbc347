"""Which times are judged as a run proceeds: [low, high] moves from a first range to a last one.

High noise decides shapes and low noise details, so most recipes come down (`Schedule.timestep` draws within the range,
as fractions of the schedule):

    recipe              first         last          anneal
    DreamFusion, DMD    .02 .98       the same
    ProlificDreamer     .02 .98       .02 .50       begin = finish: a jump (after 5,000 steps)
    ScaleDreamer        .50 .98       .02 .50       linear, both ends
    SDI                 .98 .98       .25 .25       linear, one time: give the range a width
    HiFA                .98 .98       .02 .02       sqrt, one time
    DreamTime           1   1         0   0         dreamtime, one time

Sources: arXiv 2209.14988, 2311.18828, 2305.16213, 2407.02040 (released configs), 2405.15891, 2305.18766, 2306.12422.
"""

import math
from collections.abc import Callable

from torch import Tensor

from diffdistill.diffusion import Schedule

from .tables import look_up

Range = tuple[float, float]

DREAMTIME = (0.8, 0.5, 0.3, 0.1)  # m1, m2, s1, s2 as fractions of the schedule


def _dreamtime(progress: float) -> float:
    """1 - t, where t is the time above which the share `progress` of the prior of times lies.

    The prior is 1 from m2 to m1 and falls off as a Gaussian, of standard deviation s1 above and s2 below (arXiv
    2306.12422). The paper's other factor, from the noise schedule, is left out, as in public implementations.
    """
    m1, m2, s1, s2 = DREAMTIME

    def below(t: float) -> float:
        tails = [s * math.sqrt(math.pi / 2) for s in (s1, s2)]
        low = tails[1] * (math.erf(m2 / (s2 * 2**0.5)) - math.erf(max(m2 - t, 0.0) / (s2 * 2**0.5)))
        return low + min(max(t - m2, 0.0), m1 - m2) + tails[0] * math.erf(max(t - m1, 0.0) / (s1 * 2**0.5))

    wanted, low, high = (1 - progress) * below(1.0), 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < wanted else (low, middle)
    return 1 - (low + high) / 2


ANNEALS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "sqrt": math.sqrt,  # down fast, then slowly
    "dreamtime": _dreamtime,
}


def time_range(
    progress: float,
    first: Range,
    last: Range | None = None,
    anneal: str | Callable[[float], float] = "linear",
    begin: float = 0.0,
    finish: float = 1.0,
) -> Range:
    """The range of times that are judged at this point of a run, as fractions of the schedule.

    Args:
        progress: share of the run that is done, in [0, 1].
        first: (low, high) until `begin`.
        last: (low, high) from `finish` on; None for `first` throughout.
        anneal: a name in `ANNEALS`, or a function from [0, 1] to the share of the way from first to last.
        begin, finish: the part of the run in which the range moves; it jumps where they are equal.

    Raises:
        ValueError: numbers out of order or outside [0, 1], or an unknown anneal.

    >>> time_range(0.5, (0.5, 0.98), (0.02, 0.5))
    (0.26, 0.74)
    """
    way = look_up(ANNEALS, anneal, "anneal")
    last = first if last is None else last
    for name, (low, high) in (("first", first), ("last", last)):
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name} range of times is {low} to {high}; need 0 <= low <= high <= 1")
    if not (0 <= progress <= 1 and 0 <= begin <= finish <= 1):
        raise ValueError(f"progress {progress}, begin {begin}, finish {finish}: in [0, 1], begin before finish")
    if begin == finish:
        share = float(progress >= finish)
    else:
        share = way(min(max((progress - begin) / (finish - begin), 0.0), 1.0))
    low, high = (start + (end - start) * share for start, end in zip(first, last, strict=True))
    return low, high


def earlier(schedule: Schedule, t: Tensor, width: float) -> Tensor:
    """s = t - dt, but not below 0: the earlier time of interval score matching (arXiv 2311.11284).

    Args:
        schedule: the process.
        t: times of shape (B,).
        width: dt as a fraction of the schedule; the released configs have .1 to .08.
    """
    if t.is_floating_point():
        return (t - width).clamp_min(0)
    return (t - round(width * (schedule.last + 1))).clamp_min(0)
