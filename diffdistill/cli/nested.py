"""Nested settings of a config, as dataclasses and by dotted keys."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from diffdistill.cli.config_errors import unknown_key
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
    yield from known_types(constructor, prefix)


def known_types(constructor: Any, prefix: str) -> dict[str, Any]:
    """The types of all settings of a constructor by their dotted keys, in the order of `known_keys`."""
    found: dict[str, Any] = {}
    for name, kind in types_of(constructor).items():
        found[f"{prefix}.{name}"] = kind
        if is_settings(kind):
            found |= known_types(kind, f"{prefix}.{name}")
    return found


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
        elif name in vars(values) and value is None:
            refuse_null(kind, f"{prefix}.{name}")


def refuse_null(kind: Any, key: str) -> None:
    """Raise UserError unless the type of a setting allows null; the message says what is right."""
    if is_settings(kind):
        raise _no_group(kind, None, key)
    if type(None) in get_args(kind) or kind in (None, Any):
        return
    choices = ", ".join(map(repr, get_args(kind)))
    raise UserError(f"{key} is null; expected {f'one of {choices}' if get_origin(kind) is Literal else _name(kind)}")


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))


def _first(kind: Any) -> str:
    return next(iter(types_of(kind)), "class_path")


def _no_group(kind: Any, value: Any, key: str) -> UserError:
    """The error for a value that is no group of settings."""
    return UserError(f"{key} is {_given(value)}; it must hold settings, such as {key}.{_first(kind)}")


def _given(value: Any) -> str:
    """A value as a file gives it.

    >>> _given(None), _given([0.5, True]), _given("word")
    ('null', '[0.5, true]', "'word'")
    """
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)


def check_groups(constructor: Any, values: Any, key: str, known: Sequence[str] = (), complete: bool = False) -> None:
    """Check the groups of settings of a file, which the parser does not check where they are plain or empty values.

    Args:
        constructor: a method or a dataclass.
        values: its arguments as a file gives them, perhaps below `init_args`.
        key: the dotted key of the values.
        known: the dotted keys that an error about an unknown one may offer; if empty, those of `constructor`.
        complete: whether arguments without a default value must be there.

    Raises:
        UserError: a group holds no settings, a list of groups is no list, or a key is unknown or missing.
    """
    if not isinstance(values, Mapping):
        raise _no_group(constructor, values, key)
    if "class_path" in values and values.keys() <= {"class_path", "init_args"}:
        values = values.get("init_args") or {}
        if not isinstance(values, Mapping):
            raise _no_group(constructor, values, key)
    parameters, types = inspect.signature(constructor).parameters, types_of(constructor)
    is_open = any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters.values())
    for name, value in values.items():
        first, _, rest = str(name).partition(".")
        if first not in types and not is_open:
            raise UserError(unknown_key(f"{key}.{first}", list(known) or list(known_keys(constructor, key))))
        check_group(types.get(first), {rest: value} if rest else value, f"{key}.{first}", known)
    for name, each in parameters.items():
        if complete and each.default is each.empty and name not in values:
            raise UserError(f"a value is missing for {key}.{name}")


def check_group(kind: Any, value: Any, key: str, known: Sequence[str] = ()) -> None:
    """`check_groups` for one setting, whose type may be a group, a tuple of groups, or anything else."""
    if is_settings(kind):
        if not isinstance(value, str):  # the parser explains a text
            check_groups(kind, value, key, known)
    elif _is_groups(kind) and value is not None:
        item = get_args(kind)[0]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UserError(f"{key} is {_given(value)}; it must be a list of groups, each with {_first(item)}")
        for i, each in enumerate(value):
            check_groups(item, each, f"{key}[{i}]", complete=True)


def _is_groups(kind: Any) -> bool:
    return get_origin(kind) is tuple and is_settings(get_args(kind)[0])


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
    if _is_groups(kind) and isinstance(value, Sequence):
        return tuple(_made(get_args(kind)[0], each, f"{key}[{i}]") for i, each in enumerate(value))
    if not is_settings(kind) or isinstance(value, kind):
        return value
    if not isinstance(value, Namespace | Mapping):
        raise _no_group(kind, value, key)
    inner = value.get("init_args") or {} if "class_path" in value else value
    inner = Namespace(**inner) if isinstance(inner, Mapping) else inner  # the parser's dump leaves dicts in tuples
    try:
        return built(kind, inner, key)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(key) else f"{key}: {said}") from error
