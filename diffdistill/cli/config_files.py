"""The config files that a command line names: where they are, and what they hold.

A file is checked before the parser reads it, because the parser takes some wrong files without a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from diffdistill.cli.nested import check_group, check_groups
from diffdistill.cli.paths import find
from diffdistill.errors import UserError


def config_first(argv: Sequence[str], default: str | None) -> list[str]:
    """The arguments with the config file (positional, --config X, --config=X, or a resumed run's own) in front."""
    rest, files = list(argv), []
    if rest and not rest[0].startswith("-"):
        files.append(rest.pop(0))
    options: list[str] = []
    while rest:
        argument = rest.pop(0)
        if argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        elif argument == "--config" and rest:
            files.append(rest.pop(0))
        else:
            options.append(argument)
    folder = value_of(options, "--output_dir")
    if not files and folder and value_of(options, "--resume") and (Path(folder) / "config.yaml").is_file():
        files.append(str(Path(folder) / "config.yaml"))
    elif not files and default is None and value_of(options, "--resume"):
        raise UserError(
            f"there is no run to resume in {folder}" if folder else "--resume needs --output_dir of the run"
        )
    if not files and default is not None:
        files.append(default)
    front: list[str] = []
    for file in map(find, files):
        if not Path(file).is_file():
            raise UserError(f"there is no config file {file}{_nearest(Path(file))}")
        front += ["--config", file]
    return front + options


def _nearest(missing: Path) -> str:
    """The hint "; did you mean ...?" with a file of a similar name in its folder or in configs/; or nothing."""
    for folder in (missing.parent, Path(find("configs"))) if missing.name else ():
        there = [path.name for path in folder.glob("*.yaml")]
        close = difflib.get_close_matches(missing.with_suffix(".yaml").name, there, 1, 0.8)
        if close:
            return f"; did you mean {folder / close[0]}?"
    return ""


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The last value that is given to an option as `--option value` or `--option=value`."""
    value = None
    for i, argument in enumerate(arguments):
        if argument.startswith(option + "="):
            value = argument[len(option) + 1 :]
        elif argument == option and i + 1 < len(arguments):
            value = arguments[i + 1]
    return value


def read_config(file: str) -> Mapping[str, Any]:
    """The content of a config file.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, or gives a key twice.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        twice = _given_twice(yaml.compose(text, yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"config file {file} cannot be read: {' '.join(str(error).split())}") from error
    if twice:
        raise UserError(f"config file {file}: {twice}")
    if not isinstance(content, Mapping):
        raise UserError(f"config file {file} holds no keys; it should have method, training and output_dir")
    return content


def check_method(method: type, arguments: Any, known: Sequence[str]) -> None:
    """`check_groups` for the section `method.init_args` of a file."""
    if not isinstance(arguments, Mapping):
        given = "null" if arguments is None else repr(arguments)
        raise UserError(f"method.init_args is {given}; it must hold the settings of {method.__name__}")
    check_groups(method, arguments, "method", known)


def check_options(arguments: Sequence[str], types: Mapping[str, Any]) -> None:
    """`check_group` for groups that are given whole on the command line.

    Args:
        arguments: the command line.
        types: types of the settings by dotted key.
    """
    for option in dict.fromkeys(argument.partition("=")[0] for argument in arguments):
        key = option.removeprefix("--").replace("method.init_args.", "method.", 1)
        given = value_of(arguments, option) if option.startswith("--") and key in types else None
        if given is not None:
            try:
                check_group(types[key], yaml.safe_load(given), key, list(types))
            except yaml.YAMLError:
                continue  # the parser refuses it


def without_value(message: str, arguments: Sequence[str]) -> str:
    """The line about an option that has no value, if that is what the parser's message is about; or "".

    >>> without_value("argument --method: expected one argument", ["--method.prompts", "--dry_run"])
    'method.prompts is given without a value'
    """
    said = re.search(r"argument (--[\w.]+): expected one argument", message)
    for i, argument in enumerate(arguments):
        alone = i + 1 == len(arguments) or arguments[i + 1].startswith("-")
        if said and alone and (argument == said[1] or argument.startswith(f"{said[1]}.")) and "=" not in argument:
            return f"{argument.removeprefix('--')} is given without a value"
    return ""


def _given_twice(node: Node | None, key: str = "", seen: frozenset[int] = frozenset()) -> str:
    """What is wrong with a file in which a mapping has a key twice, of which the parser would keep the last; or ""."""
    if isinstance(node, SequenceNode) and id(node) not in seen:
        found = (_given_twice(each, f"{key}[{i}]", seen | {id(node)}) for i, each in enumerate(node.value))
        return next(filter(None, found), "")
    if not isinstance(node, MappingNode) or id(node) in seen:
        return ""
    lines: dict[str, int] = {}
    for name, value in node.value:
        if isinstance(name, ScalarNode) and name.value != "<<":
            inner, line = f"{key}.{name.value}".lstrip("."), name.start_mark.line + 1
            if name.value in lines:
                return f"the key {inner} is given twice, in lines {lines[name.value]} and {line}; keep one of them"
            lines[name.value] = line
            if problem := _given_twice(value, inner, seen | {id(node)}):
                return problem
    return ""
