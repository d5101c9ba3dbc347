"""`diffdistill train CONFIG [--key value ...]`: a recipe from a YAML file, with overrides.

A method's constructor is the schema of its `method.init_args`; `training` is `TrainingSettings`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from diffdistill.errors import UserError

# settings that a continuation may change
FREE = ("log_every", "validate_every", "checkpoint_every", "checkpoints_limit", "report_to", "max_minutes")


class _Parser(ArgumentParser):
    """Raises UserError in one line, with the nearest key, where argparse would print usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split())
        odd = re.search(r"(?i:unrecognized arguments: --|Key '|key: |Option ')([\w.]+)", line)
        if odd:
            word = odd[1].split(".")[-1]
            near = difflib.get_close_matches(word, _known_keys(self), 1)
            line = f"unknown key {odd[1]!r}" + (f"; did you mean {near[0]!r}?" if near else f" ({line})")
        raise UserError(line)


def _known_keys(parser: ArgumentParser) -> list[str]:
    import inspect

    from diffdistill import methods
    from diffdistill.methods.base import Method

    keys = [action.dest.split(".")[-1] for action in parser._actions]
    for item in vars(methods).values():
        if isinstance(item, type) and issubclass(item, Method):
            keys += list(inspect.signature(item).parameters)
    return keys


def build_parser() -> ArgumentParser:
    from diffdistill.methods.base import Method
    from diffdistill.training.settings import TrainingSettings

    parser = _Parser(prog="diffdistill train", description="Train a recipe from its config file.")
    parser.add_argument("--config", action="config", help="the recipe's YAML file")
    parser.add_subclass_arguments(Method, "method", required=True)
    parser.add_class_arguments(TrainingSettings, "training")
    parser.add_argument("--output_dir", type=str, required=True, help="folder of the run")
    parser.add_argument("--resume", type=str, default=None, help="latest, or a checkpoint's folder")
    parser.add_argument("--overwrite", type=bool, default=False, help="write into a folder that holds a run")
    parser.add_argument("--dry_run", action="store_true", help="build everything, say what would run, write nothing")
    return parser


def parse(argv: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """Config file and overrides to a namespace; a first argument that is no option is the config file.

    Raises:
        UserError: a missing file, an unknown key (the nearest is named) or a value of a wrong type.
    """
    import diffdistill.methods  # noqa: F401  short class names resolve to what is imported

    arguments = list(argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    if "--config" in arguments[:-1]:
        path = Path(arguments[arguments.index("--config") + 1])
        if not path.is_file():
            raise UserError(f"there is no config file {path}")
    parser = build_parser()
    return parser, parser.parse_args(arguments)


def fingerprint(settings: dict[str, Any]) -> str:
    """Hash of what a continuation must share with its run."""
    kept = {key: value for key, value in settings.items() if key in ("method", "training")}
    kept["training"] = {k: v for k, v in kept["training"].items() if k not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def main(argv: Sequence[str]) -> None:
    """Train; prints the folder of the exported product.

    Raises:
        UserError: bad input, before anything is written.
    """
    import torch

    from diffdistill.training.loop import Trainer

    parser, namespace = parse(argv)
    resolved = parser.dump(namespace, skip_none=False)
    plain = json.loads(parser.dump(namespace, format="json", skip_none=False))
    run = Path(namespace.output_dir)
    if (run / "config.yaml").exists() and not (namespace.resume or namespace.overwrite or namespace.dry_run):
        raise UserError(f"{run} already holds a run; add --resume latest, --overwrite true, or name another output_dir")
    torch.manual_seed(namespace.training.seed)
    built = parser.instantiate_classes(namespace)
    if namespace.dry_run:
        print(resolved)
        for name, network in built.method.networks.items():
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
            print(f"{name}: {trained / 1e6:.2f} M trained parameters")
        print(f"{built.training.samples // built.training.batch_size} steps of {built.training.batch_size} samples")
        return
    if os.environ.get("RANK", "0") == "0":
        run.mkdir(parents=True, exist_ok=True)
        part = run / ".config.yaml.part"
        part.write_text(resolved)
        part.replace(run / "config.yaml")
    trainer = Trainer(built.method, built.training, run, built.resume, fingerprint(plain))
    exported = trainer.fit()
    if trainer.accelerator.is_main_process:
        print(exported)
