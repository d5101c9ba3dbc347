"""Rows that are kept in a folder, so that a run that was interrupted goes on, and nothing old is taken for new."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffdistill.files import write_json_atomic

MEASURED_BY = 3  # goes up with each change of decoding or of a metric, so that old rows are not kept


def pixels_digest(image: Tensor) -> str:
    """SHA-256 of the shape and the pixels of a uint8 image (3, H, W)."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()


def made_by() -> dict[str, str]:
    """The versions of the software that classic codecs run in."""
    import importlib.metadata

    import PIL

    try:
        jxl = importlib.metadata.version("pillow-jxl-plugin")
    except importlib.metadata.PackageNotFoundError:
        jxl = "none"
    return {"pillow": PIL.__version__, "pillow_jxl": jxl}


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """A plain file name for each image's label: letters, digits, "-" and "_", no two alike.

    >>> file_names(["a/cat.png", "cat.png", "cat.jpg"])
    {'a/cat.png': 'a_cat', 'cat.png': 'cat', 'cat.jpg': 'cat-2'}
    """
    found: dict[str, str] = {}
    for label in labels:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", str(Path(label).with_suffix(""))).strip("_") or "image"
        name, n = stem, 1
        while name.lower() in {other.lower() for other in found.values()}:
            n += 1
            name = f"{stem}-{n}"
        found[label] = name
    return found


class KeptRows:
    """Rows in one JSON file, which counts only while it was made from the same things.

    Args:
        file: where they are kept.
        made_from: all that the rows depend on; JSON.
    """

    def __init__(self, file: Path, made_from: Mapping[str, Any]) -> None:
        self.file = file
        self.made_from = json.loads(json.dumps(made_from))
        self._rows: dict[str, Any] = {}
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["made_from"] == self.made_from:
                self._rows = dict(kept["rows"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # none yet, or cut off: it is made again

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        row: dict[str, Any] = self._rows[key]
        return row

    def set(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        """Write a row, and return it."""
        self._rows[key] = row
        write_json_atomic(self.file, {"made_from": self.made_from, "rows": self._rows})
        return row

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a key, made and written if it is not there."""
        return self[key] if key in self else self.set(key, make())
