"""`diffdistill train CONFIG [--key value ...]`: a recipe from a YAML file, with overrides.

A method's constructor is the schema of its `method.init_args`; `training` is `TrainingSettings`.

Notable:
- options override the file wherever `--config` stands on the line;
- all that can be refused is refused before the first file is written;
- the run's `config.yaml` is the recipe alone: how a run was started (`resume`, `overwrite`) is not part of it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from diffdistill.cli.config_errors import explain, unknown_key
from diffdistill.cli.nested import built, flattened, known_keys, put, refuse_nulls
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes

# what a run leaves in its folder, removed when it is overwritten
PRODUCTS = (
    "checkpoint-*",
    ".checkpoint-*.part",
    "log.jsonl",
    "grids",
    "tensorboard",
    "wandb_id",
    "export*",
    ".export*",
)


class _ParserError(Exception):
    """What jsonargparse reports; parsers nest, so it is put in words only at the outermost one."""


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _ParserError(str(message))


def build_parser(for_help: bool = False) -> ArgumentParser:
    """The schema: `method`, `training` and a few keys of the run. It needs torch, not diffusers.

    Args:
        for_help: build the parser of `train --help`, which only names the methods, and needs no torch.
    """
    from diffdistill.training.settings import TrainingSettings

    parser = _Parser(prog="diffdistill train", description="Train a recipe from its config file.", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="the recipe's YAML file")
    if for_help:
        known = f"one of {', '.join(_method_names())}; `diffdistill train --method.help NAME` lists its settings"
        parser.add_argument("--method", metavar="NAME", help=known)
    else:
        from diffdistill.methods import Method

        for name in _method_names():  # the parser knows the subclasses that are imported
            _method_class(name)
        parser.add_subclass_arguments(Method, "method", required=True)
    parser.add_class_arguments(TrainingSettings, "training")
    parser.add_argument("--output_dir", type=str, required=True, help="folder of the run")
    parser.add_argument("--resume", type=str, default=None, help="latest, or a checkpoint's folder")
    parser.add_argument("--overwrite", type=bool, default=False, help="start anew in a folder that holds a run")
    parser.add_argument("--dry_run", action="store_true", help="build everything, say what would run, write nothing")
    return parser


def parse(argv: Sequence[str], default_config: str | None = None) -> tuple[ArgumentParser, Namespace]:
    """Config file and overrides to a namespace; a first argument that is no option is the config file.

    Raises:
        UserError: a missing file, an unknown key (the nearest is named) or a value of a wrong type.
    """
    arguments = _config_first(argv, default_config)
    method = _chosen_method(arguments)
    parser = build_parser(for_help=method is None and not {"-h", "--help"}.isdisjoint(arguments))
    try:
        namespace = parser.parse_args(arguments)
    except _ParserError as error:
        raise UserError(explain(str(error), _known_keys(parser, method))) from None
    _refuse_nulls(namespace)
    return parser, namespace


def main(argv: Sequence[str], default_config: str | None = None) -> None:
    """Train; prints the folder of the exported product. `default_config` is taken where no config file is named.

    Raises:
        UserError: bad input, before anything is written.
    """
    parser, namespace = parse(argv, default_config)  # a help text ends here, and does without what follows
    import torch

    from diffdistill.training.continuation import Recipe
    from diffdistill.training.launcher import read_launch
    from diffdistill.training.settings import TrainingSettings

    plain = json.loads(parser.dump(namespace, format="json", skip_unset=False))
    recipe = {key: plain[key] for key in ("method", "training", "output_dir")}
    run = Path(namespace.output_dir)
    _check_run(namespace, run)
    _look_elsewhere(namespace, run)
    torch.manual_seed(namespace.training.seed)
    settings: TrainingSettings = built(TrainingSettings, namespace.training, "training")
    settings.check(rank_and_processes()[1])
    read_launch(settings)
    method = _build(namespace, run)
    if namespace.dry_run:
        print(yaml.safe_dump(recipe, sort_keys=False))
        for name, network in method.networks.items():
            total = sum(p.numel() for p in network.parameters())
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
            print(f"{name}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained")
        print(f"{settings.samples // settings.batch_size} steps of {settings.batch_size} samples")
        return

    from diffdistill.training.loop import Trainer

    # Nothing is written before the trainer has accepted the checkpoint that it is to continue from. It also joins
    # the processes, so none of them can take the file written here for an earlier run's.
    try:
        kind = f"{type(method).__module__}.{type(method).__qualname__}"
        made_from = Recipe(kind, flattened(plain["method"].get("init_args") or {}), _paths(namespace))
        trainer = Trainer(method, settings, run, namespace.resume, made_from)
    except ValueError as error:  # an optimiser that refuses its settings
        raise UserError(f"method {type(method).__name__}: {error}") from error
    main_process = trainer.accelerator.is_main_process
    if main_process:
        _write_config(run, recipe, anew=namespace.overwrite)
    exported = trainer.fit()
    if main_process:
        print(exported)


# ---- before parsing -------------------------------------------------------------------------------------------


def _config_first(argv: Sequence[str], default: str | None) -> list[str]:
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
    folder = _value_of(options, "--output_dir")
    if not files and folder and _value_of(options, "--resume") and (Path(folder) / "config.yaml").is_file():
        files.append(str(Path(folder) / "config.yaml"))
    elif not files and default is None and _value_of(options, "--resume"):
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
    """; did you mean ...? A file of its folder, or of configs/, with a like name."""
    for folder in (missing.parent, Path(find("configs"))) if missing.name else ():
        there = [path.name for path in folder.glob("*.yaml")]
        close = difflib.get_close_matches(missing.with_suffix(".yaml").name, there, 1, 0.8)
        if close:
            return f"; did you mean {folder / close[0]}?"
    return ""


def _value_of(arguments: Sequence[str], option: str) -> str | None:
    """The last value that is given to an option as `--option value` or `--option=value`."""
    value = None
    for i, argument in enumerate(arguments):
        if argument.startswith(option + "="):
            value = argument[len(option) + 1 :]
        elif argument == option and i + 1 < len(arguments):
            value = arguments[i + 1]
    return value


def _chosen_method(arguments: Sequence[str]) -> type | None:
    """The method's class, or None where the parser has to say what is wrong.

    Raises:
        UserError: a file that is no YAML mapping, no such class, or a `method` section with other keys than
            class_path and init_args.
    """
    name: Any = _value_of(arguments, "--method.class_path") or _value_of(arguments, "--method")
    file = _value_of(arguments, "--config")
    content = _read_config(file) if file is not None else {}
    if name is None:
        name = content.get("method")
        if isinstance(name, Mapping):
            valid = ("class_path", "init_args")
            for key in name:
                if key not in valid:
                    raise UserError(unknown_key(f"method.{key}", [f"method.{k}" for k in valid]))
            name = name.get("class_path")
    return _method_class(name) if isinstance(name, str) else None


def _read_config(file: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"config file {file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"config file {file} holds no keys; it should have method, training and output_dir")
    return content


def _method_class(name: str) -> type:
    from diffdistill import methods

    module, _, short = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module) if module else methods, short, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, methods.Method) and not inspect.isabstract(found)):
        near = difflib.get_close_matches(short, _method_names(), 1, cutoff=0.0)
        raise UserError(f"method is {name!r}, which is no method; the nearest is {near[0]!r}")
    return found


def _method_names() -> list[str]:
    """The methods that the project has: each is the class of a file of its own."""
    from diffdistill import methods

    return [name for module, names in methods._MODULES.items() if module != "base" for name in names]


# ---- after parsing --------------------------------------------------------------------------------------------


def _known_keys(parser: ArgumentParser, method: type | None) -> list[str]:
    """Dotted keys of the parser and of the method's constructor (of every method's, where none is chosen)."""
    keys = [a.dest for a in parser._actions if a.dest != "training" and not a.dest.startswith("print_")]
    keys = [key for key in keys if key.split(".")[-1] != "help"]
    classes = [method] if method is not None else [_method_class(name) for name in _method_names()]
    for item in classes:
        keys += known_keys(item, "method")
    return keys


def _refuse_nulls(namespace: Namespace) -> None:
    from diffdistill.training.settings import TrainingSettings

    refuse_nulls(_method_class(namespace.method.class_path), _init_args(namespace), "method")
    refuse_nulls(TrainingSettings, namespace.training, "training")


def _init_args(namespace: Namespace) -> Namespace:
    return namespace.method.get("init_args") or Namespace()


def _check_run(namespace: Namespace, run: Path) -> None:
    """Raise UserError where the folder, or what is to be reported to, is not usable."""
    if namespace.resume and namespace.overwrite:
        raise UserError("resume goes on with a run and overwrite removes it; give one of them")
    if run.exists() and not run.is_dir():
        raise UserError(f"output_dir {run} is a file; name a folder")
    check_writable(run, "output_dir")
    if _holds_a_run(run) and not (namespace.resume or namespace.overwrite or namespace.dry_run):
        raise UserError(f"{run} already holds a run; add --resume latest, --overwrite true, or name another output_dir")
    for tracker in namespace.training.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"training.report_to names {tracker}, which is not installed: pip install {tracker}")


def _holds_a_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or any(folder.glob("checkpoint-*"))


def _look_elsewhere(namespace: Namespace, run: Path) -> None:
    """Find paths that are not under the current directory: those of a resumed run where it read them, assets/emoji and
    the like in the repository.

    Raises:
        UserError: a path of a resumed run that is in none of these places.
    """
    from diffdistill.training.checkpoint import stored_paths
    from diffdistill.training.continuation import find_again

    init_args = _init_args(namespace)
    if namespace.resume:
        places = find_again(flattened(init_args), *stored_paths(run, namespace.resume), find)
        for key, place in places.items():
            put(init_args, key, place)
    for key, value in flattened(init_args).items():
        if isinstance(value, str) and "/" in value:
            put(init_args, key, find(value))


def _paths(namespace: Namespace) -> dict[str, str]:
    """The method's arguments that are text, by dotted key, once paths were looked for elsewhere."""
    return {k: v for k, v in flattened(_init_args(namespace)).items() if isinstance(v, str)}


def build_method(namespace: Namespace) -> Any:
    """The method that `parse` found.

    Not the parser's own instantiation: it wraps what a constructor raises in errors about the config's schema.
    """
    chosen = _method_class(namespace.method.class_path)
    try:
        return built(chosen, _init_args(namespace), "method")
    except (ValueError, OSError) as error:  # a constructor's inputs all come from the config
        raise UserError(f"method {chosen.__name__} cannot be built: {error}") from error


def _build(namespace: Namespace, run: Path) -> Any:
    """As `build_method`; of a run that is to go on before its first checkpoint, an error names the path's setting."""
    from diffdistill.training.checkpoint import stored_paths
    from diffdistill.training.continuation import explain_missing

    try:
        return build_method(namespace)
    except UserError as error:
        if not namespace.resume or stored_paths(run, namespace.resume)[0]:
            raise
        raise explain_missing(error, flattened(_init_args(namespace)), run) from error


def _write_config(run: Path, recipe: dict[str, Any], anew: bool) -> None:
    """Save the resolved recipe, whole or not at all; `anew` first removes an earlier run's checkpoints and logs."""
    if anew and _holds_a_run(run):
        for old in (path for pattern in PRODUCTS for path in run.glob(pattern)):
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
    run.mkdir(parents=True, exist_ok=True)
    part = run / ".config.yaml.part"
    part.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    part.replace(run / "config.yaml")
