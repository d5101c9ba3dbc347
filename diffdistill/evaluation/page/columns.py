"""The numbers of a sweep as columns: name, which way is better, number of digits, and which row is best.

Importing this module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from diffdistill.evaluation.page.record import Measured, Row, Sweep

NAMES = {
    "kd": "KD",
    "kid": "KID",
    "cmmd": "CMMD",
    "fd": "FD",
    "fid": "FID",
    "vendi": "Vendi score",
    "seconds_per_image": "s per image",
    "nearest_median": "nearest, median",
}
FIRST = ("kd", "kid", "cmmd", "fd", "fid")  # then agreement, then everything that is not listed here
THEN = ("variety", "vendi", "recall", "precision", "coverage", "density")
LAST = ("nearest_median", "seconds_per_image")
LOWER = {"kd", "kid", "cmmd", "fd", "fid"}  # not seconds, which depend on the machine as much as on the generator
HIGHER = {"variety", "vendi", "recall", "precision", "coverage", "density"}
HELD_OUT = "held-out concepts"
IN_WORDS = {
    "kd": "kernel distance",
    "kid": "kernel distance",
    "cmmd": "kernel distance of CLIP embeddings",
    "fd": "Fréchet distance",
    "fid": "Fréchet distance",
    "variety": "mean distance between two images of one caption",
    "vendi": "how many different images a caption has in effect",
    "recall": "share of real images that lie near generated ones: variety",
    "precision": "share of images that lie near real ones: fidelity",
    "coverage": "share of real images with a generated one near",
    "density": "how many real images' neighbourhoods hold a generated one",
}


@dataclass(frozen=True)
class Column:
    """One number of a sweep.

    Attributes:
        key: its key in sweep.json.
        label: its short name.
        better: "lower", "higher", or "" where neither is better.
        decimals: number of decimals, the same for every row.
    """

    key: str
    label: str
    better: str
    decimals: int

    @property
    def arrow(self) -> str:
        """Which way is better, as an arrow; "" where neither is."""
        return {"lower": "↓", "higher": "↑", "": ""}[self.better]

    def number(self, value: float | None) -> str:
        """The number with a real minus sign, or a dash where there is no number; zero has no sign.

        >>> Column("kd", "KD", "lower", 3).number(-0.0123), Column("kd", "KD", "lower", 3).number(-0.0001)
        ('−0.012', '0.000')
        """
        if value is None:
            return "–"
        text = f"{value:.{self.decimals}f}"
        return text.replace("-", "−" if any(c in "123456789" for c in text) else "")

    def with_error(self, measured: Measured) -> str:
        """Mean ± `error_of`, or the mean alone where there is no error."""
        error = error_of(measured, self.key)
        mean = self.number(measured.mean.get(self.key))
        return mean if error is None or mean == "–" else f"{mean} ± {self.number(error)}"


def columns_of(sweep: Sweep) -> list[Column]:
    """A column for each number that some row has, in the order in which columns are shown.

    Standard errors and the number of captions stand beside other numbers and have no column.
    """
    sets = _all_sets(sweep)
    keys = list(dict.fromkeys(key for s in sets for key, value in s.mean.items() if value is not None))
    keys = [key for key in keys if not key.partition("(")[0].endswith("_se") and of_agreement(key, sweep) != "captions"]
    agreement = [sweep.agreement_metric] if sweep.agreement_metric else []
    order = [*FIRST, *agreement, *THEN]
    front = [key for key in order if key in keys]
    rest = [key for key in keys if key not in (*order, *LAST)]
    keys = [*front, *rest, *(key for key in LAST if key in keys)]
    return [Column(key, label_of(key, sweep), better_of(key, sweep), _decimals(sets, key)) for key in keys]


def plotted(sweep: Sweep, columns: Iterable[Column]) -> list[Column]:
    """The columns that are plotted: distances, agreement and shares."""
    keys = {*FIRST, *THEN, sweep.agreement_metric} - {"density", "vendi"}  # coverage and variety show the same
    return [column for column in columns if column.key in keys]


def label_of(key: str, sweep: Sweep) -> str:
    """The short name of a number. Agreement's full key, which names the towers, stands in the protocol.

    >>> class S: agreement_metric, rows = "clip_score(ViT-g-14, 'A photo depicts ', x1)", []
    >>> label_of(S.agreement_metric, S), label_of("clip_r1(ViT-g-14)", S), label_of("kd", S)
    ('agreement', 'agreement R@1', 'KD')
    """
    what = of_agreement(key, sweep)
    if what in ("r1", "r5"):
        among = captions_among(sweep)
        return f"R@{what[-1]} among {among} captions" if among else f"agreement R@{what[-1]}"
    return "agreement" if what == "score" else NAMES.get(key, key.partition("(")[0].replace("_", " "))


def of_agreement(key: str, sweep: Sweep) -> str:
    """Which of agreement's numbers a key is: "score", "r1", "r5" or "captions"; "" for any other key."""
    kind, _, _ = (sweep.agreement_metric or "").partition("_")
    towers, _, what = key.partition("(")[0].partition("_")
    return what if kind and towers == kind and what in ("score", "r1", "r5", "captions") else ""


def captions_among(sweep: Sweep) -> str:
    """The number of captions that retrieval was among, such as "64" or "60 to 64"; "" where it is not known."""
    found = {
        round(value)
        for row in sweep.rows
        for numbers in row.seeds.values()
        for key, value in numbers.items()
        if value is not None and of_agreement(key, sweep) == "captions"
    }
    return " to ".join(str(n) for n in sorted({min(found), max(found)})) if found else ""


def better_of(key: str, sweep: Sweep) -> str:
    """Which way a number is better: "lower", "higher", or "" where it is not known."""
    return "lower" if key in LOWER else "higher" if key in HIGHER or of_agreement(key, sweep) else ""


def headline_column(columns: Iterable[Column]) -> Column | None:
    """The column that rows are ranked by: KD where it is measured, otherwise the first where one way is better."""
    return next((column for column in columns if column.better), None)


def error_of(measured: Measured, key: str) -> float | None:
    """The standard deviation over the measured seeds; in a sweep of one seed, the standard error over images.

    The two are not mixed: where a sweep has several seeds, a row with one seed has no error.
    """
    return measured.mean.get(f"{key}_se") if measured.of_seeds == 1 else measured.sd.get(key)


def fewer_seeds(measured: Measured) -> str:
    """What is said of a row that lacks some seeds, such as "2 of 3 seeds"; "" for a row that has them all."""
    n = len(measured.seeds)
    return f"{n} of {measured.of_seeds} seeds" if n < measured.of_seeds else ""


class Real(NamedTuple):
    """Real images as a row: in a few words which ones they are, and their numbers."""

    how: str
    measured: Measured


def real_rows(sweep: Sweep) -> list[Real]:
    """The rows of real images: the floor, and, where prompts are training captions, images of held-out concepts.

    Held-out concepts have the distance to the nearest training image, and agreement where the towers were trained on
    the prompts. R@1 and R@5 are left out where retrieval was among another number of captions.
    """
    floor = sweep.floor
    if floor is None:
        return []
    if sweep.prompts_of != "training":
        return [Real("", floor)]
    own = {key: value for key, value in floor.mean.items() if key != "nearest_median"}
    rows = [Real("the prompts\u2019 own", replace(floor, mean=own))]
    held = {key: value for key, value in (floor.unseen or {}).items() if of_agreement(key, sweep)}
    among = next((value for key, value in held.items() if of_agreement(key, sweep) == "captions"), None)
    if among is None or f"{among:g}" != captions_among(sweep):
        held = {key: value for key, value in held.items() if of_agreement(key, sweep) == "score"}
    if (distance := floor.mean.get("nearest_median")) is not None:
        held["nearest_median"] = distance
    if held:
        rows.append(Real(HELD_OUT, replace(floor, mean=held, sd={}, seeds=floor.seeds)))
    return rows


def level_of(sweep: Sweep, column: Column) -> tuple[float, str] | None:
    """The number of real images in a column, and which real images those are; None where there is no such number."""
    for how, measured in reversed(real_rows(sweep)):
        if (value := measured.mean.get(column.key)) is not None:
            own_pairs = column.key == sweep.agreement_metric == "align_score"  # the towers were trained on these pairs
            return value, how if how == HELD_OUT or (how and own_pairs) else "real images"
    return None


def best_of(rows: Iterable[Row], column: Column | None) -> Row | None:
    """The row whose mean is best, and of equal rows the one with fewer passes; None where no row has the number."""
    if column is None:
        return None
    sign = -1 if column.better == "higher" else 1
    ranked = [
        (sign * value, row.nfe or row.steps, row) for row in rows if (value := row.mean.get(column.key)) is not None
    ]
    return min(ranked, key=lambda entry: entry[:2])[2] if ranked else None


def rows_of(sweep: Sweep, generator: str) -> list[Row]:
    """A generator's rows, in order of guidance and then of steps."""
    return sorted((r for r in sweep.rows if r.generator == generator), key=lambda r: (r.guidance, r.steps))


def setting(row: Row, with_guidance: bool = True) -> str:
    """A row's sampler in words, such as "1 step" or "50 steps at guidance 3"."""
    steps = f"{row.steps} step{'' if row.steps == 1 else 's'}"
    return f"{steps} at guidance {row.guidance:g}" if with_guidance else steps


def described(sweep: Sweep, row: Row) -> str:
    """A row's sampler in words, and its number of seeds where some are missing."""
    return ", ".join(filter(None, (setting(row, guided(sweep, row.generator)), fewer_seeds(row))))


def guided(sweep: Sweep, generator: str) -> bool:
    """Whether guidance has to be named: the generator was measured at a guidance scale other than 1."""
    return any(row.guidance != 1 for row in sweep.rows if row.generator == generator)


def _all_sets(sweep: Sweep) -> list[Measured]:
    return [*sweep.rows, *(measured for _, measured in real_rows(sweep))]


def _decimals(sets: Iterable[Measured], key: str) -> int:
    """`digits` of the means, and one more where most errors are zero without it and are not with it."""
    sets = list(sets)
    needed = digits([v for s in sets if (v := s.mean.get(key)) is not None])
    errors = [error for s in sets if (error := error_of(s, key))]
    return needed + (bool(errors) and 0.05 < median(errors) * 10.0**needed < 0.5)


def digits(values: Iterable[float]) -> int:
    """The number of decimals that shows three or four digits of the largest value.

    >>> [digits([value]) for value in (1234, 248.31, 12.312, 0.2384, 0.01234)]
    [1, 1, 2, 3, 4]
    """
    largest = max(map(abs, values), default=0.0)
    if largest == 0:
        return 3
    return min(8, 2 + (largest < 1) - (largest >= 100) + max(0, -math.floor(math.log10(largest)) - 1))
