"""`diffdistill train CONFIG [--key value ...]`: train a recipe from a YAML file, with overrides.

The constructor of a method is the schema of its `method.init_args`; `training` is a `TrainingSettings`.

Notable:
- options override the file, wherever `--config` is on the line;
- everything that can be refused is refused before the first file is written;
- the run's `config.yaml` is the recipe alone; how a run was started (`resume`, `overwrite`) is not part of it.
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
from diffdistill.cli.config_files import check_method, check_options, config_first, read_config, value_of, without_value
from diffdistill.cli.nested import (
    built,
    check_groups,
    flattened,
    known_keys,
    known_types,
    put,
    refuse_null,
    refuse_nulls,
    take_nulls,
)
from diffdistill.cli.paths import check_writable, find
from diffdistill.errors import UserError
from diffdistill.launched import rank_and_processes

# what a run writes into its folder; removed when the run is overwritten
PRODUCTS = (
    "checkpoint-*",
    ".checkpoint-*.part",
    "log.jsonl",
    "grids",
    "curves.html",
    "best.safetensors",
    "tensorboard",
    "wandb_id",
    "export*",
    ".export*",
)


class _ParserError(Exception):
    """An error of jsonargparse. Parsers are nested, so only the outermost one turns it into a message."""


class _Parser(ArgumentParser):
    nulls: Sequence[str] = ()  # dotted keys that `take_nulls` found; `--print_config` prints before `parse` puts them

    def dump(self, cfg: Namespace, *args: Any, **options: Any) -> str:
        for key in self.nulls:
            put(cfg, key, None)
        return super().dump(cfg, *args, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _ParserError(str(message))


def build_parser(for_help: bool = False) -> _Parser:
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
    parser.add_argument(
        "--resume", type=str, default=None, help="continue a run: latest, or the folder of a checkpoint"
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="start again in a folder that holds a run")
    parser.add_argument(
        "--dry_run", action="store_true", help="build everything and print the recipe, but write nothing"
    )
    return parser


def parse(argv: Sequence[str], default_config: str | None = None) -> tuple[ArgumentParser, Namespace]:
    """Parse the config file and the overrides.

    Args:
        argv: the command's arguments; if the first one is no option, it is the config file.
        default_config: the config file if none is named.

    Returns:
        The parser, and the parsed settings.

    Raises:
        UserError: the file is missing, a key is unknown (the message names the nearest one), or a value has another
            type.
    """
    from diffdistill.training.settings import TrainingSettings

    arguments = config_first(argv, default_config)
    method = _chosen_method(arguments)
    for_help = method is None and not {"-h", "--help"}.isdisjoint(arguments)
    parser = build_parser(for_help)
    types = {} if method is None else known_types(method, "method")
    known = [] if for_help else _known_keys(parser, method)  # of all methods if none is chosen, which takes seconds
    if not for_help:
        _check_files(arguments, method, known)
        check_options(arguments, types | {"training": TrainingSettings})
    arguments, nulls = take_nulls(arguments, types)
    for key in nulls:
        refuse_null(types[key], key)
    parser.nulls = [key.replace("method.", "method.init_args.", 1) for key in nulls]
    try:
        namespace = parser.parse_args(arguments)
    except _ParserError as error:
        problem = without_value(str(error), arguments) or explain(str(error), known or _known_keys(parser, method))
        raise UserError(problem) from None
    for key in nulls:
        put(_init_args(namespace), key.removeprefix("method."), None)
    _refuse_nulls(namespace)
    return parser, namespace


def main(argv: Sequence[str], default_config: str | None = None) -> None:
    """Train, and print the folder of the exported product.

    Args:
        argv: the command's arguments.
        default_config: the config file if none is named.

    Raises:
        UserError: bad input; nothing is written then.
    """
    parser, namespace = parse(argv, default_config)  # with --help the program ends here, without the imports below
    import torch

    from diffdistill.training.continuation import Identity, Recipe
    from diffdistill.training.launcher import read_launch
    from diffdistill.training.resume import Start
    from diffdistill.training.settings import TrainingSettings

    plain = json.loads(parser.dump(namespace, format="json", skip_unset=False))
    recipe = {key: plain[key] for key in ("method", "training", "output_dir")}
    run = Path(namespace.output_dir)
    _check_run(namespace, run)
    look_elsewhere(namespace, run)
    torch.manual_seed(namespace.training.seed)
    settings: TrainingSettings = built(TrainingSettings, namespace.training, "training")
    settings.check(rank_and_processes()[1])
    read_launch(settings)
    method = _build(namespace, run)
    kind = f"{type(method).__module__}.{type(method).__qualname__}"
    made_from = Recipe(kind, flattened(plain["method"].get("init_args") or {}), _paths(namespace))
    if namespace.dry_run:
        start = Start.of(run, namespace.resume, Identity.of(method, settings, made_from, run), settings)
        remarks = (*settings.fits(method.scores, method.steps_before), *start.remarks)
        print(yaml.safe_dump(recipe, sort_keys=False))
        for name, network in method.networks.items():
            total = sum(p.numel() for p in network.parameters())
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
            print(f"{name}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained")
        print(f"{settings.samples // settings.batch_size} steps of {settings.batch_size} samples")
        if start.folder is not None:
            print(f"the run would continue from {start.folder}")
        for remark in remarks:
            print(remark)
        return

    from diffdistill.training.loop import Trainer

    # Nothing is written before the trainer has accepted the checkpoint that it continues from. The trainer also joins
    # the processes, so none of them can take the file that is written here for that of an earlier run.
    try:
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


def _chosen_method(arguments: Sequence[str]) -> type | None:
    """The class of the method; None if the parser will say what is wrong.

    Raises:
        UserError: the file is no YAML mapping, there is no such class, or the `method` section has other keys than
            class_path and init_args.
    """
    name: Any = value_of(arguments, "--method.class_path") or value_of(arguments, "--method")
    file = value_of(arguments, "--config")
    content = read_config(file) if file is not None else {}
    if name is None:
        name = content.get("method")
        if isinstance(name, Mapping):
            valid = ("class_path", "init_args")
            for key in name:
                if key not in valid:
                    raise UserError(unknown_key(f"method.{key}", [f"method.{k}" for k in valid]))
            name = name.get("class_path")
    return _method_class(name) if isinstance(name, str) else None


def _check_files(arguments: Sequence[str], method: type | None, known: Sequence[str]) -> None:
    """Refuse what the parser would take from the config files without a word, or refuse in words of its own."""
    from diffdistill.training.settings import TrainingSettings

    sections = {key.split(".")[0] for key in known}
    for i in (i for i, argument in enumerate(arguments[:-1]) if argument == "--config"):
        content = read_config(arguments[i + 1])
        for key in content:
            if str(key).split(".")[0] not in sections:
                raise UserError(unknown_key(str(key), known))
        if not isinstance(content.get("training", ""), str):
            check_groups(TrainingSettings, content["training"], "training", known)
        section = content.get("method")
        if isinstance(section, Mapping) and "init_args" in section:
            name = section.get("class_path")
            if chosen := _method_class(name) if isinstance(name, str) else method:
                check_method(chosen, section["init_args"], known if chosen is method else ())


def _method_class(name: str) -> type:
    from diffdistill import methods

    module, _, short = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module) if module else methods, short, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, methods.Method) and not inspect.isabstract(found)):
        near = difflib.get_close_matches(short, _method_names(), 1, cutoff=0.0)
        raise UserError(f"unknown method {name!r}; the nearest is {near[0]!r}")
    return found


def _method_names() -> list[str]:
    """Names of the project's methods; each is the class of its own file."""
    from diffdistill import methods

    return [name for module, names in methods._MODULES.items() if module != "base" for name in names]


def check_has_teacher(config: str) -> None:
    """Raise UserError unless the method of this config file distils a teacher."""
    method = _chosen_method(config_first([config], None))
    if method is not None and "teacher" not in inspect.signature(method).parameters:
        raise UserError(f"{config} trains {method.__name__}, which has no teacher; name a config that distils one")


# ---- after parsing --------------------------------------------------------------------------------------------


def _known_keys(parser: ArgumentParser, method: type | None) -> list[str]:
    """Dotted keys of the parser and of the method's constructor; of all methods if none is chosen."""
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
    """Raise UserError where the folder of the run, or a tracker, cannot be used."""
    if namespace.resume and namespace.overwrite:
        raise UserError("resume continues a run and overwrite removes it; give only one of them")
    if not str(namespace.output_dir).strip():
        raise UserError("output_dir is empty; name a folder")
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


def look_elsewhere(namespace: Namespace, run: Path) -> None:
    """Find paths that do not exist from the current directory.

    Paths of a resumed run are looked for where the run read them, and others, such as assets/emoji, in the repository.

    Raises:
        UserError: a path of a resumed run is in none of these places.
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
    """The method's arguments that are text, by dotted key, after `look_elsewhere` has replaced paths."""
    return {k: v for k, v in flattened(_init_args(namespace)).items() if isinstance(v, str)}


def build_method(namespace: Namespace) -> Any:
    """Build the method of parsed settings.

    The parser itself does not instantiate it, because it would wrap a constructor's error in one about the schema.

    Raises:
        UserError: the constructor refuses its settings.
    """
    chosen = _method_class(namespace.method.class_path)
    try:
        return built(chosen, _init_args(namespace), "method")
    except (ValueError, OSError) as error:  # all inputs of a constructor come from the config
        raise UserError(f"method {chosen.__name__} cannot be built: {error}") from error


def _build(namespace: Namespace, run: Path) -> Any:
    """`build_method`. For a run that is resumed before its first checkpoint, an error names the setting of a path."""
    from diffdistill.training.checkpoint import stored_paths
    from diffdistill.training.continuation import explain_missing

    try:
        return build_method(namespace)
    except UserError as error:
        if not namespace.resume or stored_paths(run, namespace.resume)[0]:
            raise
        raise explain_missing(error, flattened(_init_args(namespace)), run) from error


def _write_config(run: Path, recipe: dict[str, Any], anew: bool) -> None:
    """Save the resolved recipe, whole or not at all. With `anew`, first remove what an earlier run wrote."""
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
