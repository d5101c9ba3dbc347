"""Prompts, and captions without their images, from any format that `text_files` reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffdistill.data.text_files import Entry, read_entries
from diffdistill.errors import UserError


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file, in its order; empty lines of a .txt are skipped.

    Args:
        path: a .txt, .jsonl, .csv or .tsv, or a .json in COCO's format; "FILE.csv::COLUMN" names the column.

    Raises:
        UserError: see `read_prompt_records`.
    """
    return [record["prompt"] for record in read_prompt_records(path)]


def read_prompt_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file, each with its prompt under "prompt" and whatever else it holds.

    Raises:
        UserError: there is no such file, its format is not read, it holds no prompt, or a prompt in a record is empty
            or has several lines.
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
        raise UserError(f"{path} holds no prompt; write one per line")
    return found


def read_captions(path: str | Path) -> list[str]:
    """The captions of a file, in its order. The module `captions` pairs them with images.

    Raises:
        UserError: see `caption_entries`.
    """
    return [entry.text for entry in caption_entries(path)]


def caption_entries(path: str | Path) -> list[Entry]:
    """The captions of a file with their records.

    Raises:
        UserError: there is no such file, its format is not read, it holds no caption, or a caption is empty, so that
            later captions would belong to the wrong images.
    """
    entries = read_entries(path, "caption")
    for entry in entries:
        if not entry.text:
            raise UserError(f"{path}, {entry.where} is empty; write a caption for each image")
    if not entries:
        raise UserError(f"{path} holds no caption; write one per line")
    return entries
