"""Rows as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

FIRST = ("of", "name", "thing", "colour", "split")


def csv_table(record: Mapping[str, Any]) -> str:
    """One line for each prompt, each split and each thing, as the column "of" says.

    Args:
        record: from `record.record_of`.
    """
    lines = [{"of": "prompt", "name": row["prompt"], **row} for row in record["rows"]]
    lines += [{"of": "split", "name": name, **row} for name, row in record["splits"].items()]
    lines += [{"of": "thing", "name": name, "thing": name, **row} for name, row in record["things"].items()]
    keys = dict.fromkeys(key for line in lines for key in line if key not in FIRST and key != "prompt")
    out = io.StringIO()
    writer = csv.DictWriter(out, [*FIRST, *keys], extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
