"""Errors of jsonargparse about a config, as one line that names the key, the value and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

_UNKNOWN = (
    r"unrecognized arguments: --(?P<key>[\w.-]+)",
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.-]+)'",
    r"Option '(?P<key>[\w.-]+)' is not accepted",
)
_LONGEST = 300


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The error for a key that is not in `known`, which holds dotted keys; it always names the nearest one.

    >>> unknown_key("training.batchsize", ["output_dir", "training.batch_size"])
    "unknown key 'training.batchsize'; the nearest is 'training.batch_size'"
    """
    dotted = difflib.get_close_matches(key, known, 1, cutoff=0.7)
    word = key.split(".")[-1]
    section = [k for k in known if "." in key and k.startswith(key.split(".")[0] + ".")]
    by_word = {k.split(".")[-1]: k for k in section or known}
    near = dotted or [by_word[w] for w in difflib.get_close_matches(word, by_word, 1, cutoff=0.0)]
    return f"unknown key {key!r}; the nearest is {near[0]!r}"


def explain(message: str, known: Sequence[str]) -> str:
    """One line for a message of jsonargparse, which contains the nested messages of several parsers.

    Args:
        message: the message that the parser's `error` got.
        known: the dotted keys that are valid.
    """
    owners = re.findall(r'Parser key "([\w.]+)":', message)
    inside = owners[0] + "." if len(owners) > 1 else ""
    for pattern in _UNKNOWN:
        if odd := re.search(pattern, message):
            parts = odd.groupdict()
            group = parts.get("group") or (owners[0] if owners else "")
            return unknown_key(f"{group}.{parts['key']}" if group else parts["key"], known)
    for nest in re.finditer(r'Parser key "([\w.]+)":\s+Unable to load config [\'"](.*?)[\'"]', message):
        key = inside + nest[1]
        if inner := [name for name in known if name.startswith(f"{key}.")]:
            return f"{key} is {nest[2]!r}; it must hold settings, such as {inner[0]}"
    if missing := re.search(r"the following arguments are required: ([\w., ]+)", message):
        prefix = owners[0] + "." if owners else ""
        names = ", ".join(prefix + name.strip() for name in missing[1].split(","))
        return f"a value is missing for {names}"
    if stray := re.search(r"unrecognized arguments: (\S+)", message):
        return f"unexpected argument {stray[1]!r}; the config file comes first, options start with --"
    innermost = message[message.rfind('Parser key "') :] if owners else message
    key = inside + owners[-1] if owners else ""
    if wrong := re.search(r"Expected an? (.+?)\. Got value: (.*)", innermost):
        return f"{key} is {_value(wrong[2])}; expected {_type_name(wrong[1])}"
    if wrong := re.search(r"Subtypes: \[(.+?)\]\s.*?Given value: (.*?)\s*$", innermost, re.DOTALL | re.MULTILINE):
        return f"{key} is {_value(wrong[2])}; expected {_type_name(wrong[1])}"
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _value(text: str) -> str:
    """
    >>> _value(" many "), _value("None")
    ("'many'", 'null')
    """
    return "null" if text.strip() == "None" else repr(text.strip())


def _type_name(text: str) -> str:
    """Types in the words of an error.

    >>> _type_name("<class 'float'>, <class 'NoneType'>")
    'float or null'
    >>> _type_name("typing.Literal['no', 'bf16']")
    "one of 'no', 'bf16'"
    """
    text = re.sub(r"typing\.Literal\[(.+?)\]", r"one of \1", text)
    names = re.sub(r"<class '(?:[\w]+\.)*(\w+)'>", r"\1", text).replace("NoneType", "null")
    return names if "one of" in names else names.replace(", ", " or ")
