"""What is public in a module of the two core packages is exported by its package, and documented."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import diffdistill.diffusion
import diffdistill.distill

PACKAGES = (diffdistill.diffusion, diffdistill.distill)


def modules(package: ModuleType) -> list[ModuleType]:
    return [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]


def defined_in(module: ModuleType) -> dict[str, object]:
    """Its public functions and classes."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_function_and_class_is_exported_and_has_a_docstring(package: ModuleType) -> None:
    found = {name: value for module in modules(package) for name, value in defined_in(module).items()}
    assert len(found) > 30  # so that the test looks at something
    for name, value in found.items():
        assert name in package.__all__, f"{name} is not in {package.__name__}.__all__"
        assert getattr(package, name) is value
        assert inspect.getdoc(value), f"{name} has no docstring"
        for member, method in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and (inspect.isfunction(method) or isinstance(method, property)):
                assert inspect.getdoc(method), f"{name}.{member} has no docstring"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_names_are_those_of_the_package_itself(package: ModuleType) -> None:
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert not inspect.ismodule(value)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__module__.startswith(package.__name__)
    for module in modules(package):
        assert module.__doc__, f"{module.__name__} has no docstring"
