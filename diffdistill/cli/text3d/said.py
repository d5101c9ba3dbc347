"""What a command says of the files that it wrote: one line a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def say(path: Path, numbers: dict[str, Any], line: str, as_json: bool) -> None:
    """Print what is known of a file.

    Args:
        path: of the file.
        numbers: of the JSON object; the path is its first value.
        line: for a person.
        as_json: print the JSON object rather than the line.
    """
    print(json.dumps({"file": str(path), **numbers}) if as_json else f"{path}  {line}", flush=True)
