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

# keys of recipes before settings were nested, and where they are now; the first that the method has is named
_RENAMED = {
    "images": ("adversary.data.source", "data.source"),
    "real_images": ("adversary.data.source", "data.source"),
    "captions": ("adversary.data.captions", "data.captions"),
    "adam_eps": ("optimizer.eps",),
    "betas": ("optimizer.betas",),
    "learning_rate": ("optimizer.learning_rate",),
    "fake_score": ("fake.network",),
    "half_export": ("export.half",),
}


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The error for a key that is not in `known`, which holds dotted keys; it always names the nearest one.

    >>> unknown_key("training.batchsize", ["output_dir", "training.batch_size"])
    "unknown key 'training.batchsize'; the nearest is 'training.batch_size'"
    """
    old = key.removeprefix("method.").removeprefix("init_args.")
    for new in (f"method.{new}" for new in _RENAMED.get(old, ()) if key.startswith("method.")):
        if new in known:
            return f"unknown key {key!r}; the nearest is {new!r}"
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
    inside = owners[0] + "." if len(set(owners)) > 1 else ""
    for pattern in _UNKNOWN:
        if odd := re.search(pattern, message):
            parts = odd.groupdict()
            group = parts.get("group") or (owners[0] if owners else "")
            path = f"{group}.{parts['key']}" if group else parts["key"]
            begins = {name.split(".")[0] for name in known}
            if owners and path.split(".")[0] not in begins and owners[0] in begins:  # a group of the method
                path = f"{owners[0]}.{path}"
            return unknown_key(path, known)
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
        hint = " (.inf for infinity)" if wrong[2].strip().lower() in ("inf", "-inf") else ""
        return f"{key} is {_value(wrong[2])}; expected {_type_name(wrong[1])}{hint}"
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
