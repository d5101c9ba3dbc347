"""Where the files that configs name are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find(path: str) -> str:
    """`path` as it is where it exists from the current directory, else from the repository's root if it is there."""
    if not path or Path(path).exists():
        return path
    inside = ROOT / path
    return str(inside) if inside.exists() else path
