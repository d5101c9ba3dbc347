"""Methods from nested settings that are written flat: made(SwiftBrush, teacher__source=..., fake__lora__rank=2)."""

import dataclasses
import inspect
from typing import Any

from diffdistill.cli.nested import is_settings, types_of


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Flat settings as they nest in a config: {"a__b": 1} to {"a": {"b": 1}}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *way, last = key.split("__")
        inner = found
        for name in way:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return found


def made(kind: Any, prepare: bool = True, **settings: Any) -> Any:
    """The method, prepared on the CPU unless asked otherwise; what is not named has the constructor's own default."""
    method = _nested(kind, None, settings)
    if prepare:
        method.prepare("cpu")
    return method


def _nested(kind: Any, default: Any, settings: dict[str, Any]) -> Any:
    groups: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    for key, value in settings.items():
        name, nested, rest = key.partition("__")
        if nested:
            groups.setdefault(name, {})[rest] = value
        else:
            plain[name] = value
    types, parameters = types_of(kind), inspect.signature(kind).parameters
    for name, inner in groups.items():
        assert is_settings(types[name]), f"{kind.__name__}.{name} does not nest"
        own = parameters[name].default if default is None else getattr(default, name)
        plain[name] = _nested(types[name], None if own is inspect.Parameter.empty else own, inner)
    return kind(**plain) if default is None else dataclasses.replace(default, **plain)
