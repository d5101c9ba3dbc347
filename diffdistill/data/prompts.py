"""Prompt lists: text files with one prompt a line, or .jsonl with one record a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffdistill.errors import UserError


def read_prompts(path: str | Path) -> list[str]:
    """Non-empty lines, stripped.

    Raises:
        UserError: no such file, not UTF-8, or no prompt in it.
    """
    lines = _lines(Path(path))
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one a line")
    return prompts


def read_prompt_records(path: str | Path) -> list[dict[str, Any]]:
    """Of a .jsonl file, its objects, each with a "prompt" and whatever else a tool wants beside it; of any other, the
    lines of `read_prompts`, each as {"prompt": line}.

    Raises:
        UserError: a line that is no JSON object, or whose prompt is missing, empty or of several lines; and as
            `read_prompts`.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        return [{"prompt": prompt} for prompt in read_prompts(path)]
    records = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        prompt = record.get("prompt") if isinstance(record, dict) else None
        if not isinstance(prompt, str) or not prompt.strip() or len(prompt.splitlines()) > 1:
            raise UserError(f'{path}, line {number} should be an object with a "prompt" of one line: {line[:80]}')
        records.append(record)
    if not records:
        raise UserError(f'{path} holds no prompt; write one a line, as {{"prompt": "a blue apple"}}')
    return records


def read_captions(path: str | Path) -> list[str]:
    """Lines, stripped, one a picture: none may be empty, since all after it would go to the wrong picture.

    Raises:
        UserError: no such file, not UTF-8, or an empty line.
    """
    captions = [line.strip() for line in _lines(Path(path), "caption")] or [""]
    if "" in captions:
        raise UserError(f"{path}, line {captions.index('') + 1} is empty; write a caption a picture")
    return captions


def _lines(path: Path, what: str = "prompt") -> list[str]:
    if not path.is_file():
        raise UserError(f"there is no {what} file {path}")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
