"""Files that are either whole or absent, and the user's cache folder."""

import json
import os
from pathlib import Path
from typing import Any


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes `obj` as JSON to `path` in one rename; a reader sees the old file or the new one, never a part.

    Folders on the way are made.

    Raises:
        TypeError: something that JSON has no form for.
        ValueError: a number that is not finite. `path` is left as it was in both cases.
    """
    write_atomic(
        path, (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")
    )


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


def user_cache() -> Path:
    """$DIFFDISTILL_CACHE, or diffdistill in $XDG_CACHE_HOME, or in ~/.cache."""
    if folder := os.environ.get("DIFFDISTILL_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffdistill"
