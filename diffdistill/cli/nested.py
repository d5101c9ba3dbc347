"""Nested settings of a config: to dataclasses, to dotted keys, and back."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from diffdistill.errors import UserError


def types_of(constructor: Any) -> dict[str, Any]:
    """The types of the arguments of a class's constructor, by name."""
    hints = get_type_hints(constructor.__init__)
    return {name: hints.get(name, Any) for name in list(inspect.signature(constructor).parameters)}


def is_settings(kind: Any) -> bool:
    """Whether a type is a dataclass, which nests."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def known_keys(constructor: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of all that a constructor takes, however deep; those of settings that nest come after their own."""
    for name, kind in types_of(constructor).items():
        yield f"{prefix}.{name}"
        if is_settings(kind):
            yield from known_keys(kind, f"{prefix}.{name}")


def flattened(values: Mapping[str, Any] | Namespace, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key.

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


def refuse_nulls(constructor: Any, values: Namespace, prefix: str) -> None:
    """The parser lets null stand for any value; where the type has no None it would fail in the middle of a run.

    Raises:
        UserError: names the key.
    """
    for name, kind in types_of(constructor).items():
        value = values.get(name)
        if is_settings(kind) and isinstance(value, Namespace):
            refuse_nulls(kind, value, f"{prefix}.{name}")
        elif name in vars(values) and value is None and type(None) not in get_args(kind):
            raise UserError(f"{prefix}.{name} is null; expected {getattr(kind, '__name__', str(kind))}")


def built(constructor: Any, values: Namespace, prefix: str) -> Any:
    """Call a constructor with its settings made into dataclasses first, the innermost ones before the others.

    Raises:
        UserError: what settings refuse, with the dotted key of the group that they are in. What the constructor itself
            raises is left as it is.
    """
    types, given = types_of(constructor), vars(values)
    return constructor(**{name: _made(types.get(name), value, f"{prefix}.{name}") for name, value in given.items()})


def _made(kind: Any, value: Any, key: str) -> Any:
    """A value as its type wants it: settings, several of them in a tuple, or as it is."""
    if get_origin(kind) is tuple and is_settings(get_args(kind)[0]) and isinstance(value, Sequence):
        return tuple(_made(get_args(kind)[0], each, f"{key}[{i}]") for i, each in enumerate(value))
    if not is_settings(kind) or not isinstance(value, Namespace):
        return value
    inner = value.get("init_args") or Namespace() if "class_path" in vars(value) else value
    try:
        return built(kind, inner, key)
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(key) else f"{key}: {said}") from error
