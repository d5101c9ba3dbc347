"""The package's public names: each is there, has a docstring, and is known to type checkers from the same module."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import diffdistill
import diffdistill.comparison
import diffdistill.evaluation
import diffdistill.methods
import diffdistill.text3d
from diffdistill import lazy

PACKAGES = [diffdistill, diffdistill.comparison, diffdistill.evaluation, diffdistill.methods, diffdistill.text3d]


def for_type_checkers(package: object) -> dict[str, str]:
    """By name, the module that the package's TYPE_CHECKING block imports it from."""
    tree = ast.parse(Path(str(getattr(package, "__file__", ""))).read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and isinstance(n.test, ast.Name)]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        found |= {alias.name: node.module for alias in node.names}
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_known_to_type_checkers(package: object) -> None:
    name, public = package.__name__, package.__all__
    assert len(set(public)) == len(public)
    table = {key: f"{name}.{module}" for module, keys in package._MODULES.items() for key in keys}
    assert table == for_type_checkers(package)
    assert set(table) == set(public) and set(public) <= set(dir(package))
    for key in public:
        value = getattr(package, key)
        assert value is getattr(importlib.import_module(table[key]), key)
        if isinstance(value, type) or callable(value):
            assert value.__doc__ and not value.__doc__.startswith(f"{key}("), key  # not one that a dataclass makes
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_no_public_name_is_that_of_a_module_beside_it() -> None:
    """Importing the module would hide the name."""
    for package in PACKAGES:
        folder = Path(str(package.__file__)).parent
        beside = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
        assert not beside & set(package.__all__)


def test_docstring_examples() -> None:
    found = doctest.testmod(lazy)
    assert found.attempted and not found.failed
