"""Packages that only meshes need, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(module: str) -> Any:
    """A module of the extra `text3d`.

    Args:
        module: its name, such as "trimesh".

    Raises:
        UserError: it is not installed.
    """
    from diffdistill.errors import UserError

    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"meshes need {module} ({error}); pip install 'diffdistill[text3d]'") from error
