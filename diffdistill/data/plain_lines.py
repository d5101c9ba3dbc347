"""Detects a .txt that does not hold one prompt or caption per line, but another format under the wrong name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from diffdistill.data.listing import PICTURES

_MARKUP = re.compile(r"<\?xml|<!doctype|<html|<svg|\{\\rtf", re.IGNORECASE)
_BEGINS_JSON = re.compile(r'[\[{]\s*[{"\[]')
_NAME_FIRST = re.compile(
    rf"\S+({'|'.join(re.escape(e) for e in PICTURES)})(#\d+)?[\"']?(\s*[|,;:\t]|\s)", re.IGNORECASE
)
_SEPARATORS = (",", ";", "|", "\t")


def instead_of_lines(lines: Sequence[str], columns: Sequence[str]) -> str | None:
    """The other format that lines are in, in words; None where they are plain lines.

    Args:
        lines: the lines of the file in order, without space around them; some may be empty.
        columns: names of columns that hold text, in small letters.

    >>> instead_of_lines(["image,caption", "1.jpg,a red apple"], ["caption"])
    'a table with a header line (.csv)'
    >>> instead_of_lines(["red, blue, green", "text, neon"], ["text"]) is None
    True
    """
    full = [line for line in lines if line]
    if not full:
        return None
    if _MARKUP.match(full[0]):
        return "markup"
    if _BEGINS_JSON.match(full[0]) or any(_is_json(line) for line in full[:20]) or _is_json("\n".join(full)):
        return "JSON"
    if sum(bool(_NAME_FIRST.match(line)) for line in full) > len(full) / 2:
        return "file names before the texts (write a .csv with the columns file_name and caption)"
    if len(full) > 1 and all("\t" in line for line in full):
        return "a table of tabs (.tsv)"
    if len(full) > 1 and full[0].lower() in columns:
        return "a column with a header line (.csv)"
    for separator in _SEPARATORS:
        header = [name.strip().strip('"').lower() for name in full[0].split(separator)]
        plain = all(re.fullmatch(r"\w+( \w+)?", name) for name in header)
        named = any(word in columns or word == "comment" for name in header for word in (name, name.split(" ")[-1]))
        wide = all(line.count(separator) >= len(header) - 1 for line in full)
        if len(full) > 1 and len(header) > 1 and plain and named and wide:
            return "a table with a header line (.csv)"
    return None


def _is_json(line: str) -> bool:
    if not line.startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False
