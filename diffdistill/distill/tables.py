"""Looking a row up by name in one of this package's tables, with an error that names the nearest row."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Row = TypeVar("Row")


def look_up(table: Mapping[str, Row], row: str | Row, what: str) -> Row:
    """The row of that name; a row itself is passed through, so that callers may bring their own.

    Args:
        table: rows by name.
        row: a name, or a row.
        what: what a row is, for the error: "residual", "weight".

    Raises:
        ValueError: no such name. The message lists the names there are and the nearest one.

    >>> look_up({"sds": 1, "vsd": 2}, "vsd", "residual")
    2
    """
    if not isinstance(row, str):
        return row
    if row in table:
        return table[row]
    near = get_close_matches(row, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {row!r}; there are: {', '.join(table)}.{hint}")
