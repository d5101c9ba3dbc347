"""Prompt lists: text files, one prompt a line."""

from __future__ import annotations

from pathlib import Path

from diffdistill.errors import UserError


def read_prompts(path: str | Path) -> list[str]:
    """Non-empty lines, stripped.

    Raises:
        UserError: no such file, or no prompt in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no prompt file {path}")
    prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one a line")
    return prompts
