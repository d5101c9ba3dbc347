"""Prompts, and captions without their images, of any format that `text_files` reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffdistill.data.text_files import Entry, read_entries
from diffdistill.errors import UserError


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, in its order; empty lines of a .txt are passed over.

    Args:
        path: .txt, .jsonl, .csv, .tsv or COCO's .json; "FILE.csv::COLUMN" names the column.

    Raises:
        UserError: as `read_prompt_records`.
    """
    return [record["prompt"] for record in read_prompt_records(path)]


def read_prompt_records(path: str | Path) -> list[dict[str, Any]]:
    """The prompts of a file, each under "prompt", with whatever else its record holds.

    Raises:
        UserError: no such file, a format that is not read, no prompt in it, an empty one in a record, or one of several
            lines.
    """
    found = []
    for entry in read_entries(path, "prompt"):
        if not entry.text and not entry.key:
            continue
        if not entry.text:
            raise UserError(f"{path}, {entry.where}: the prompt is empty")
        if re.search("[\r\n]", entry.text):
            raise UserError(
                f"{path}, {entry.where}: the prompt has several lines; write it in one: {entry.text[:60]!r}"
            )
        found.append({**entry.fields, "prompt": entry.text})
    if not found:
        raise UserError(f"{path} holds no prompt; write one a line")
    return found


def read_captions(path: str | Path) -> list[str]:
    """The captions of a file, in its order; which image each belongs to, `captions` says.

    Raises:
        UserError: as `caption_entries`.
    """
    return [entry.text for entry in caption_entries(path)]


def caption_entries(path: str | Path) -> list[Entry]:
    """The captions of a file with their records.

    Raises:
        UserError: no such file, a format that is not read, none in it, or an empty one, after which
            others would go astray.
    """
    entries = read_entries(path, "caption")
    for entry in entries:
        if not entry.text:
            raise UserError(f"{path}, {entry.where} is empty; write a caption for each image")
    if not entries:
        raise UserError(f"{path} holds no caption; write one a line")
    return entries
