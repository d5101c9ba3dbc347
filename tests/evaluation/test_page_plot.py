"""Plots against coordinates worked out by hand; axes, ticks and labels against their definitions."""

import doctest
import math
import random
import re

import pytest

from diffdistill.evaluation.page import axes, plot
from diffdistill.evaluation.page.axes import axis_over, round_ticks, spread
from diffdistill.evaluation.page.plot import Plot, Point, Series, cut, draw


def coordinates(pattern: str, svg: str) -> list[tuple[float, ...]]:
    return [tuple(float(group) for group in found.groups()) for found in re.finditer(pattern, svg)]


def test_points_lie_where_the_affine_map_puts_them() -> None:
    """x: log2 of 1, 2, 4 with 5% of air is -0.1 .. 2.1, on 44 .. 360 - 24 - 5.9 * 5 = 306.5 pixels, 119.318 a doubling;
    y: 0, 1, 3 with 5% of air is -0.15 .. 3.15, on 244 .. 34 pixels, 63.636 a unit."""
    points = [Point(1, 0), Point(2, 1), Point(4, 3)]
    svg = draw(Plot("KD", "steps", [Series("abcde", points)], x_ticks=[1, 2, 4], log2=True))
    expected = [
        (44 + 0.1 * 119.3182, 244 - 0.15 * 63.6364),
        (44 + 1.1 * 119.3182, 244 - 1.15 * 63.6364),
        (44 + 2.1 * 119.3182, 244 - 3.15 * 63.6364),
    ]
    marks = coordinates(r'class="mark" cx="([\d.]+)" cy="([\d.]+)" r="3.6"', svg)
    assert marks == [pytest.approx(e, abs=0.01) for e in expected]
    line = re.search(r'class="line" d="M([^"]+)"', svg)
    assert line is not None
    drawn = [tuple(map(float, corner.split())) for corner in line[1].split("L")]
    assert drawn == [pytest.approx(e, abs=0.01) for e in expected]
    ticks = coordinates(r'class="tick x" x="([\d.]+)" y="[\d.]+">(\d+)<', svg)
    assert ticks == [pytest.approx((x, n), abs=0.01) for (x, _), n in zip(expected, (1, 2, 4), strict=True)]


def test_error_bars_are_one_error_up_and_down() -> None:
    """y spans 1 - 0.5 .. 3 + 0.5 with 0.15 of air: 0.35 .. 3.65 on 244 .. 34, 63.636 pixels a unit."""
    svg = draw(Plot("KD", "x", [Series("a", [Point(0, 1, 0.5), Point(1, 3, 0.5), Point(2, 2)])]))
    bars = coordinates(r"M([\d.]+) ([\d.]+)V([\d.]+)", svg)
    assert [bar[1:] for bar in bars] == [
        pytest.approx((244 - (y + 0.5 - 0.35) * 63.6364, 244 - (y - 0.5 - 0.35) * 63.6364), abs=0.01) for y in (1, 3)
    ]
    marks = coordinates(r'class="mark" cx="([\d.]+)"', svg)
    assert [bar[0] for bar in bars] == [x for (x,) in marks[:2]]


def test_floor_and_carried_value_are_level() -> None:
    svg = draw(
        Plot("KD", "steps", [Series("t", [Point(1, 4), Point(4, 2)]), Series("s", [Point(1, 1)])], floor=(0, "r"))
    )
    (floor,) = coordinates(r'class="floor" d="M[\d.]+ ([\d.]+)H', svg)
    (carried,) = coordinates(r'class="carry" d="M[\d.]+ ([\d.]+)H', svg)
    per_unit = 210 / 4.4  # 0 .. 4 with 0.2 of air
    assert floor == pytest.approx((244 - 0.2 * per_unit,), abs=0.01)
    assert carried == pytest.approx((244 - 1.2 * per_unit,), abs=0.01)


def test_one_point_alone_is_in_the_middle_and_hovers() -> None:
    svg = draw(Plot("KD", "steps", [Series("a", [Point(8, 0.25, title="a & b: 0.25")])], x_ticks=[8], log2=True))
    ((x, y),) = coordinates(r'class="hit" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert (x, y) == pytest.approx(((44 + 360 - 24 - 5.9) / 2, (34 + 244) / 2), abs=0.01)
    assert "<title>a &amp; b: 0.25</title>" in svg and 'class="line"' not in svg


def test_equal_values_and_values_a_bit_apart_have_an_axis() -> None:
    for values in ([0.0, 0.0], [3.0], [0.3, 0.3 + 1e-16], [-2.0, -2.0]):
        axis = axis_over(values, 0, 100)
        assert all(0 < axis(v) < 100 for v in values)
        assert 2 <= len(round_ticks(axis.low, axis.high)) <= 10


def test_ticks_are_round_and_few_on_any_range() -> None:
    draws = random.Random(0)
    for _ in range(300):
        low = draws.uniform(-1, 1) * 10 ** draws.uniform(-6, 6)
        high = low + 10 ** draws.uniform(-3, 6)
        ticks = round_ticks(low, high)
        step = ticks[1] - ticks[0]
        assert low - 1e-6 * step <= ticks[0] and ticks[-1] <= high + 1e-6 * step and 2 <= len(ticks) <= 9
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-6), 3) in (1, 2, 5)


def test_labels_keep_apart_and_move_least() -> None:
    draws = random.Random(1)
    for _ in range(100):
        wanted = sorted(draws.uniform(0, 200) for _ in range(12))
        placed = spread(wanted, 14, 0, 200)
        assert all(b - a >= 14 - 1e-9 for a, b in zip(placed, placed[1:], strict=False))
        assert placed[0] >= 0 and placed[-1] <= 200 + 1e-9
    assert spread([10, 60, 110], 14, 0, 200) == [10, 60, 110]
    assert spread([50, 50, 50], 10, 0, 200) == [40, 50, 60]  # about their mean


def test_names_are_cut_in_the_middle_and_escaped() -> None:
    assert cut("a" * 17) == "a" * 17 and cut("teacher_of_2024_ema_final") == "teacher_o…a_final"
    svg = draw(Plot("<b>", "<i>", [Series("<script>", [Point(1, 1, label="<p>", title="<q>")])], note="<u>"))
    assert not re.search(r"<(b|i|script|p|q|u)>", svg)
    with pytest.raises(ValueError, match="needs a series"):
        draw(Plot("KD", "steps", []))


def test_docstring_examples() -> None:
    for module in (plot, axes):
        assert not doctest.testmod(module).failed
