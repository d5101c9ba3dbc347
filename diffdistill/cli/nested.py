"""Nested settings of a config, as dataclasses and by dotted keys."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from diffdistill.errors import UserError


def types_of(constructor: Any) -> dict[str, Any]:
    """The types of the arguments of a class's constructor, by name."""
    hints = get_type_hints(constructor.__init__)
    return {name: hints.get(name, Any) for name in list(inspect.signature(constructor).parameters)}


def is_settings(kind: Any) -> bool:
    """Whether a type is a dataclass, which is nested in a config."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def known_keys(constructor: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of all settings of a constructor, at any depth. The key of a group comes before those in it."""
    for name, kind in types_of(constructor).items():
        yield f"{prefix}.{name}"
        if is_settings(kind):
            yield from known_keys(kind, f"{prefix}.{name}")


def flattened(values: Mapping[str, Any] | Namespace, prefix: str = "") -> dict[str, Any]:
    """All values by their dotted keys.

    >>> flattened({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    found: dict[str, Any] = {}
    for key, value in (vars(values) if isinstance(values, Namespace) else values).items():
        if isinstance(value, Mapping | Namespace):
            found |= flattened(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def put(values: Namespace, key: str, value: Any) -> None:
    """Replace the value at a dotted key."""
    *way, last = key.split(".")
    for part in way:
        values = values[part]
    values[last] = value


def take_nulls(arguments: Sequence[str], keys: Collection[str]) -> tuple[list[str], list[str]]:
    """Split the command line into what the parser reads and the keys that are null.

    The parser takes null for the text "None" if a setting of a method is in a group. An option that comes later wins.

    Args:
        arguments: the command line.
        keys: dotted keys of the method's settings.

    >>> take_nulls(["--m.a.b", "null", "--m.c=null", "--m.d.e=null", "--m.d.e=2"], ["m.a.b", "m.c", "m.d.e"])
    (['--m.c=null', '--m.d.e=2'], ['m.a.b'])
    """
    rest, last, i = [], {}, 0
    while i < len(arguments):
        name, is_whole, value = arguments[i].removeprefix("--").partition("=")
        given = [arguments[i]] if is_whole else list(arguments[i : i + 2])
        if arguments[i].startswith("--") and name.count(".") > 1 and name in keys and (is_whole or len(given) == 2):
            last[name] = value if is_whole else given[1]
            rest += given if last[name] != "null" else []
            i += len(given)
        else:
            rest.append(arguments[i])
            i += 1
    return rest, [name for name, value in last.items() if value == "null"]


def refuse_nulls(constructor: Any, values: Namespace, prefix: str) -> None:
    """Refuse null where the type does not allow it. The parser allows it everywhere, and a run would fail later.

    Raises:
        UserError: a value is null; the message names the key.
    """
    for name, kind in types_of(constructor).items():
        value = values.get(name)
        if is_settings(kind) and isinstance(value, Namespace):
            refuse_nulls(kind, value, f"{prefix}.{name}")
        elif name in vars(values) and value is None and type(None) not in get_args(kind):
            raise UserError(f"{prefix}.{name} is null; expected {getattr(kind, '__name__', str(kind))}")


def built(constructor: Any, values: Namespace, prefix: str) -> Any:
    """Call a constructor, after its groups of settings are made into dataclasses, the innermost ones first.

    Raises:
        UserError: a group refuses its settings; the message begins with the dotted key of the group. Errors of the
            constructor itself are left as they are.
    """
    types, given = types_of(constructor), vars(values)
    return constructor(**{name: _made(types.get(name), value, f"{prefix}.{name}") for name, value in given.items()})


def _made(kind: Any, value: Any, key: str) -> Any:
    """A value in its type: a group of settings, a tuple of groups, or the value as it is."""
    if get_origin(kind) is tuple and is_settings(get_args(kind)[0]) and isinstance(value, Sequence):
        return tuple(_made(get_args(kind)[0], each, f"{key}[{i}]") for i, each in enumerate(value))
    if not is_settings(kind) or not isinstance(value, Namespace | Mapping):
        return value
    inner = value.get("init_args") or {} if "class_path" in value else value
    inner = Namespace(**inner) if isinstance(inner, Mapping) else inner  # the parser's dump leaves dicts in tuples
    try:
        return built(kind, inner, key)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(key) else f"{key}: {said}") from error
