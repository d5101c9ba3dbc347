"""Names of a package that are imported when they are first used (PEP 562), so that importing the package is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package whose public names live in its modules.

    Args:
        package: the package's `__name__`.
        modules: for each module, relative to the package, the names that come from it.

    >>> getter, lister = lazy_names("diffdistill", {"errors": ("UserError",)})
    >>> getter("UserError").__module__
    'diffdistill.errors'
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def getter(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    def lister() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return getter, lister
