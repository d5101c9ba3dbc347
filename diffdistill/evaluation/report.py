"""Reports: a JSON file that is either whole or absent, and a table for the terminal."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEADER = ("name", "steps (nfe)", "guidance", "KD ± se", "FD", "n", "s/image")


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes `obj` as JSON to `path` in one rename; a reader sees the old file or the new one, never a part.

    Folders on the way are made.

    Raises:
        TypeError: something that JSON has no form for.
        ValueError: a number that is not finite. `path` is left as it was in both cases.
    """
    write_atomic(path, (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes to `path` in one rename; folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def format_table(report: Mapping[str, Mapping[str, Any]]) -> str:
    """An aligned plain-text table, one row a generator.

    Args:
        report: by name, a mapping with any of `steps`, `nfe` (network evaluations), `guidance`, `kd`,
            `kd_se`, `fd`, `n` and `seconds_per_image`. What is missing or None is shown as "-"; other keys
            are ignored.

    Returns:
        Lines without a newline at the end.

    >>> print(format_table({"teacher": {"steps": 50, "nfe": 100, "guidance": 3, "kd": 0.01234, "fd": 98.7}}))
    name     steps (nfe)  guidance  KD ± se    FD  n  s/image
    -------  -----------  --------  -------  ----  -  -------
    teacher     50 (100)         3   0.0123  98.7  -        -
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
        cell("n", "d"),
        cell("seconds_per_image", ".3g"),
    )
