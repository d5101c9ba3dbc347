"""Rows as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffdistill.evaluation.rate.measures import Metric


def csv_table(rows: Iterable[Mapping[str, Any]], equal: Iterable[Mapping[str, Any]], kd: Iterable[Mapping[str, Any]],
              metrics: Sequence[Metric]) -> str:  # fmt: skip
    """One line for each file, and one for each point of patch-KD, which is of all photographs.

    The column "of" says which: "curve", "equal bytes" or "all photographs".
    """
    keys = [metric.key for metric in metrics]
    out = io.StringIO()
    columns = ["of", "codec", "photograph", "quality", "bytes", "bpp", *keys, "block_grid"]
    writer = csv.DictWriter(out, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({"of": "curve", "photograph": row["image"], **row})
    for row in equal:
        for codec, file in row["files"].items():
            writer.writerow({"of": "equal bytes", "photograph": row["image"], "codec": codec, **file})
    for row in kd:
        writer.writerow({"of": "all photographs", **row})
    return out.getvalue()
