"""Prompts by direction and the weights of perp-neg, against the published numbers and a scalar implementation."""

from __future__ import annotations

import math

import pytest
import torch

from diffdistill.errors import UserError
from diffdistill.text3d.teachers.view_prompts import (
    DIRECTIONS,
    FRONT_BACK,
    FRONT_SIDE,
    SIDE_BACK,
    SIDE_FRONT,
    ViewPrompts,
    blend,
    directions,
    falling,
    with_directions,
)

HOW = ViewPrompts("perp_neg")


def test_the_published_weights() -> None:
    published = {FRONT_SIDE: (1.574, 0.0), SIDE_BACK: (0.394, 0.0), FRONT_BACK: (1.967, 1.574)}
    assert SIDE_FRONT == FRONT_SIDE
    for numbers, ends in published.items():
        found = falling(torch.tensor([0.0, 1.0]), numbers).tolist()
        assert found == pytest.approx(ends, abs=1e-3)


def by_hand(azimuth: float) -> tuple[list[float], list[tuple[int, float]]]:
    """Shares of front, side and back; and the two negatives with their weights, in the signs of the paper."""
    away = abs((azimuth + 180) % 360 - 180)
    if away < 90:
        r = 1 - away / 90
        a, b = (4 * math.exp(-0.5 * x) - 2.426 for x in (r, 1 - r))
        return [r, 1 - r, 0.0], [(0, 0.5 * a), (1, 0.5 * b)]
    r = 2 - away / 90
    return [0.0, r, 1 - r], [(1, 0.5 * (math.exp(-0.5 * r) - 0.606)), (0, 0.5 * (math.exp(-0.5 * r) + 0.967))]


def test_the_blend_at_all_azimuths_is_that_of_the_formulas() -> None:
    azimuths = torch.arange(-270.0, 271.0, 7.5)
    found = blend(azimuths, torch.zeros(len(azimuths)), HOW)
    for k, azimuth in enumerate(azimuths.tolist()):
        shares, negatives = by_hand(azimuth)
        assert found.positive[k].tolist() == pytest.approx([*shares, 0.0], abs=1e-5)
        assert found.negatives[k].tolist() == [which for which, _ in negatives]
        assert found.weights[k].tolist() == pytest.approx([weight for _, weight in negatives], abs=1e-5)
    assert bool((found.weights >= 0).all())
    torch.testing.assert_close(found.positive.sum(1), torch.ones(len(azimuths)))


def test_the_strongest_negative_prompt_is_the_front_seen_from_behind() -> None:
    found = blend(torch.tensor([0.0, 90.0, 180.0]), torch.zeros(3), HOW)
    assert found.weights.tolist() == [
        pytest.approx([0.0, 0.787], abs=1e-3), pytest.approx([0.0, 0.787], abs=1e-3),
        pytest.approx([0.197, 0.984], abs=1e-3),
    ]  # fmt: skip
    doubled = blend(torch.tensor([180.0]), torch.zeros(1), ViewPrompts("perp_neg", strength=1.0))
    torch.testing.assert_close(doubled.weights[0], 2 * found.weights[2])


def test_from_overhead_there_is_nothing_to_lead_away_from() -> None:
    found = blend(torch.tensor([0.0, 180.0, 0.0]), torch.tensor([61.0, 89.0, 60.0]), HOW)
    assert found.positive[:2].tolist() == [[0.0, 0.0, 0.0, 1.0]] * 2 and found.positive[2, 0] == 1
    assert found.weights[:2].tolist() == [[0.0, 0.0]] * 2 and found.negatives[:2].tolist() == [[-1, -1]] * 2


def test_the_nearest_direction() -> None:
    azimuths = torch.tensor([0.0, 29.0, -29.0, 31.0, 149.0, 151.0, 180.0, -170.0, 330.5, 10.0])
    elevations = torch.tensor([0.0] * 9 + [70.0])
    found = directions(azimuths, elevations, ViewPrompts()).tolist()
    assert [DIRECTIONS[k].split()[0] for k in found] == [
        "front", "front", "front", "side", "side", "back", "back", "back", "front", "overhead",
    ]  # fmt: skip
    assert with_directions("a mug")[2] == "a mug, back view"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "perpneg"}, "directions.mode is 'perpneg'; it must be auto, none, words or perp_neg"),
        ({"front_deg": -1.0}, "front_deg is -1.0; it must be in"),
        ({"overhead_deg": 91.0}, "overhead_deg is 91.0"),
        ({"front_deg": 100.0, "back_deg": 90.0}, "overlap"),
        ({"strength": -0.5}, "strength is -0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ViewPrompts(**settings)  # type: ignore[arg-type]
