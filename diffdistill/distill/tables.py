"""Look-up of rows by name in the tables of this package, with an error that names the nearest row."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Row = TypeVar("Row")


def look_up(table: Mapping[str, Row], row: str | Row, what: str) -> Row:
    """The row of that name. A row itself is returned as it is, so that callers may pass their own.

    Args:
        table: rows by name.
        row: a name, or a row.
        what: what a row is, for the error: "residual", "weight".

    Raises:
        ValueError: an unknown name. The message lists the names in the table and the nearest one.

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
