"""Rows of a sweep.json that `diffdistill eval sweep` wrote, and those at the best guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """None of a sweep that is missing, or still being measured: its rows may lack steps."""
    sweep = json.loads(path.read_text()) if path.is_file() else {"complete": False}
    rows: list[dict[str, Any]] = sweep["rows"] if sweep["complete"] else []
    return rows


def best_by_steps(rows: list[dict[str, Any]], generator: str | None = None) -> dict[int, dict[str, Any]]:
    """Of each number of steps, in order, the row whose guidance has the lowest KD; of one generator, where named."""
    found: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["steps"], row["mean"]["kd"])):
        if generator in (None, row["generator"]):
            found.setdefault(row["steps"], row)
    return found
