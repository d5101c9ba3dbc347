"""`sweep.json`: which rows a sweep has, in what order their cells are made, and the numbers over the seeds.

Notable:
- all cells of a seed are made before those of the next seed, the cheap ones first, so that the table is useful early;
- the record is valid at any time: rows without a cell yet are left out, and `complete` says whether any are.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffdistill.evaluation.page.record import VERSION


@dataclass(frozen=True)
class Row:
    """A generator at one number of steps and one guidance scale; `REAL` is the floor's row."""

    generator: str
    steps: int
    guidance: float

    @property
    def cost(self) -> int:
        """About how many network passes an image takes: it orders the cells. The record has the counted number."""
        return self.steps * (2 if self.guidance > 1 else 1)

    @property
    def name(self) -> str:
        """The name of the row's files, such as "teacher-50-3"."""
        return "real" if self == REAL else f"{self.generator}-{self.steps}-{shortest(self.guidance)}"


REAL = Row("", 0, 1.0)


def shortest(value: float) -> str:
    """A number's text: 3.0 gives "3", and no two numbers give the same text."""
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def rows_of(
    models: Sequence[str], students: Sequence[str], steps: Sequence[int], guidance: Sequence[float]
) -> list[Row]:
    """Models at every number of steps and every guidance scale; students, which distilled guidance, without guidance.

    >>> [row.name for row in rows_of(["teacher"], ["student"], [1, 2], [1.0, 2.5])]
    ['teacher-1-1', 'teacher-1-2.5', 'teacher-2-1', 'teacher-2-2.5', 'student-1-1', 'student-2-1']
    """
    of_models = [Row(name, n, scale) for name in models for n in steps for scale in guidance]
    return of_models + [Row(name, n, 1.0) for name in students for n in steps]


def in_order(rows: Sequence[Row], seeds: Sequence[int]) -> list[tuple[Row, int]]:
    """The cells in the order in which they are made: seed by seed, those of few network passes first.

    >>> [(row.name, seed) for row, seed in in_order([Row("a", 2, 2.0), Row("b", 1, 1.0)], [5, 0])]
    [('b-1-1', 5), ('a-2-2', 5), ('b-1-1', 0), ('a-2-2', 0)]
    """
    return [(row, seed) for seed in seeds for row in sorted(rows, key=lambda row: row.cost)]


def over_seeds(numbers: Mapping[int, Mapping[str, float | None]]) -> dict[str, Any]:
    """Numbers over the seeds, by name: `seeds`, `mean`, and `sd`, the sample standard deviation (None for one number).

    >>> over_seeds({0: {"kd": 1.0}, 1: {"kd": 3.0}})["sd"]
    {'kd': 1.4142135623730951}
    """
    names = list(dict.fromkeys(name for found in numbers.values() for name in found))
    there = {name: [v for found in numbers.values() if (v := found.get(name)) is not None] for name in names}
    return {
        "seeds": {str(seed): dict(found) for seed, found in numbers.items()},
        "mean": {name: statistics.fmean(values) if values else None for name, values in there.items()},
        "sd": {name: statistics.stdev(values) if len(values) > 1 else None for name, values in there.items()},
    }


def table(
    head: Mapping[str, Any],
    rows: Sequence[Row],
    seeds: Sequence[int],
    floor: bool,
    found: Mapping[tuple[Row, int], Mapping[str, Any]],
    samples: Sequence[str],
) -> dict[str, Any]:
    """The whole record.

    Args:
        head: what stands before the rows: protocol, agreement, reference, options, generators.
        rows: the generators' rows.
        seeds: images are shown of the first one.
        floor: whether there will be a floor.
        found: the cells that are there, as their files hold them (`cells.Cells`).
        samples: the first prompts of the first seed.
    """
    wanted = [*rows, *([REAL] if floor else [])]
    complete = all((row, seed) in found for row in wanted for seed in seeds)
    return {
        "version": VERSION,
        **head,
        "complete": complete,
        "rows": [_entry(row, seeds, found) for row in rows if any((row, seed) in found for seed in seeds)],
        "floor": _entry(REAL, seeds, found) if any((REAL, seed) in found for seed in seeds) else None,
        "samples": {"prompts": list(samples), "seed": seeds[0]},
    }


def _entry(row: Row, seeds: Sequence[int], found: Mapping[tuple[Row, int], Mapping[str, Any]]) -> dict[str, Any]:
    there = [seed for seed in seeds if (row, seed) in found]
    facts = found[row, there[0]]["facts"]
    first = found.get((row, seeds[0]), {"pictures": {}, "nearest_distances": None})
    shown = {"strip": "strips", "nearest": "nearest"}
    numbers = over_seeds({seed: found[row, seed]["numbers"] for seed in there})
    if row == REAL:
        numbers["sd"]["nearest_median"] = None  # of the same images for every seed
        of = {"unseen": facts.get("unseen")}
    else:
        of = {"generator": row.generator, "steps": row.steps, "guidance": row.guidance, "nfe": facts["nfe"]}
    return {
        **of,
        **numbers,
        **{kind: f"{place}/{row.name}.png" if kind in first["pictures"] else None for kind, place in shown.items()},
        "nearest_distances": first["nearest_distances"],
    }
