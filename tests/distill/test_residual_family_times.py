"""Ranges of times: ends, the recipes' numbers, and DreamTime's as the inverse of a summed prior."""

import math

import pytest
import torch

from diffdistill.diffusion import FlowSchedule, VPSchedule
from diffdistill.distill import ANNEALS, earlier, time_range
from diffdistill.distill.times import DREAMTIME

FIRST, LAST = (0.5, 0.98), (0.02, 0.5)


@pytest.mark.parametrize("anneal", list(ANNEALS))
def test_from_the_first_range_to_the_last_without_turning_back(anneal: str) -> None:
    ranges = [time_range(i / 50, FIRST, LAST, anneal) for i in range(51)]
    assert ranges[0] == pytest.approx(FIRST) and ranges[-1] == pytest.approx(LAST)
    for before, after in zip(ranges, ranges[1:], strict=False):
        assert after[0] <= before[0] and after[1] <= before[1] and after[0] < after[1]
    shares = [(FIRST[1] - high) / (FIRST[1] - LAST[1]) for _, high in ranges]
    assert shares == pytest.approx([(FIRST[0] - low) / (FIRST[0] - LAST[0]) for low, _ in ranges])


def test_linear_is_swiftbrush_bit_for_bit() -> None:
    """t_max + (t_max_final - t_max) progress, with a lower end that stays where it is."""
    for progress in (i / 997 for i in range(998)):
        assert time_range(progress, (0.02, 0.981), (0.02, 0.1)) == (0.02, 0.981 + (0.1 - 0.981) * progress)


def test_recipes() -> None:
    assert time_range(0.7, FIRST) == FIRST
    assert [time_range(p, (0.02, 0.98), (0.02, 0.5), begin=0.2, finish=0.2)[1] for p in (0.0, 0.199, 0.2, 1.0)] == [
        0.98, 0.98, 0.5, 0.5,
    ]  # fmt: skip
    scale_dreamer = [time_range(step / 25_000, FIRST, LAST) for step in (0, 12_500, 25_000)]
    assert [x for r in scale_dreamer for x in r] == pytest.approx([0.5, 0.98, 0.26, 0.74, 0.02, 0.5])
    hifa = [time_range(p, (0.98, 0.98), (0.02, 0.02), "sqrt")[0] for p in (0.0, 0.25, 1.0)]
    assert hifa == pytest.approx([0.98, 0.5, 0.02])
    middle = time_range(0.4, FIRST, LAST, begin=0.2, finish=0.6)
    assert middle == pytest.approx(time_range(0.5, FIRST, LAST))
    assert time_range(0.1, FIRST, LAST, begin=0.2, finish=0.6) == FIRST
    assert time_range(0.5, FIRST, LAST, lambda p: p**2)[1] == pytest.approx(0.98 - 0.25 * 0.48)


def test_dreamtime_spends_on_each_time_what_the_prior_gives_it() -> None:
    m1, m2, s1, s2 = DREAMTIME
    n = 20_000
    times = [(i + 0.5) / n for i in range(n)]
    prior = [
        math.exp(-((t - m1) ** 2) / (2 * s1**2)) if t > m1 else math.exp(-(min(t - m2, 0.0) ** 2) / (2 * s2**2))
        for t in times
    ]
    for progress in (0.05, 0.2, 0.5, 0.8, 0.95):
        t = time_range(progress, (1.0, 1.0), (0.0, 0.0), "dreamtime")[0]
        above = sum(p for time, p in zip(times, prior, strict=True) if time > t)
        assert above / sum(prior) == pytest.approx(progress, abs=2e-4)


def test_errors() -> None:
    for bad in ((0.5, 0.4), (-0.1, 0.4), (0.5, 1.1)):
        with pytest.raises(ValueError, match="need 0 <= low <= high <= 1"):
            time_range(0.5, FIRST, bad)
    with pytest.raises(ValueError, match="progress 1.5"):
        time_range(1.5, FIRST)
    with pytest.raises(ValueError, match="begin 0.6, finish 0.5"):
        time_range(0.5, FIRST, LAST, begin=0.6, finish=0.5)
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        time_range(0.5, FIRST, LAST, "liner")


def test_the_earlier_time() -> None:
    vp, flow = VPSchedule.from_config({}), FlowSchedule()
    assert earlier(vp, torch.tensor([5, 80, 500]), 0.08).tolist() == [0, 0, 420]
    assert earlier(flow, torch.tensor([0.05, 0.5], dtype=torch.float64), 0.1).tolist() == pytest.approx([0.0, 0.4])
