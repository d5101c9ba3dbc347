"""Prompt lists: text files, one prompt a line."""

from __future__ import annotations

from pathlib import Path

from diffdistill.errors import UserError


def read_prompts(path: str | Path) -> list[str]:
    """Non-empty lines, stripped.

    Raises:
        UserError: no such file, not UTF-8, or no prompt in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no prompt file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one a line")
    return prompts
