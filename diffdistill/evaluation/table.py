"""A report as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

_HEADER = ("name", "steps (nfe)", "guidance", "KD ± se", "FD", "KD/T", "variety/T", "n", "s/image")


def format_table(report: Mapping[str, Mapping[str, Any]]) -> str:
    """An aligned table in plain text, with one row for each generator.

    Args:
        report: for each name, a mapping with any of `steps`, `nfe` (network evaluations), `guidance`, `kd`, `kd_se`,
            `fd`, `kd_ratio` and `variety_ratio` (to the teacher's, see `comparison.ruler`), `n` and
            `seconds_per_image`. What is missing or None is shown as "-". Other keys are ignored.

    Returns:
        Lines without a newline at the end.

    >>> print(format_table({"teacher": {"steps": 50, "nfe": 100, "guidance": 3, "kd": 0.01234, "fd": 98.7}}))
    name     steps (nfe)  guidance  KD ± se    FD  KD/T  variety/T  n  s/image
    -------  -----------  --------  -------  ----  ----  ---------  -  -------
    teacher     50 (100)         3   0.0123  98.7     -          -  -        -
    """
    rows = [_HEADER, *(_row(name, entry) for name, entry in report.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _row(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    def cell(key: str, form: str) -> str:
        value = entry.get(key)
        return "-" if value is None else format(value, form)

    steps, nfe = cell("steps", "d"), cell("nfe", "d")
    kd, kd_se = cell("kd", ".4f"), cell("kd_se", ".4f")
    return (
        name,
        steps if nfe == "-" else f"{steps} ({nfe})",
        cell("guidance", "g"),
        kd if kd_se == "-" else f"{kd} ± {kd_se}",
        cell("fd", ".1f"),
        cell("kd_ratio", ".2f"),
        cell("variety_ratio", ".2f"),
        cell("n", "d"),
        cell("seconds_per_image", ".3g"),
    )
