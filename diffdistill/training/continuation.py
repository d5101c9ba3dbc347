"""What must stay the same when a run is continued, and what may change.

A checkpoint stores the name and value of every setting that affects the numbers. A setting that is a path is stored as
a digest of what is read there (`Method.content`). A continuation is compared with that, and a refusal names each
setting that differs, with its old and its new value. Settings that affect no number are free: `FREE`, and those of a
method, `Method.free`.

`training.samples` is free as long as nothing so far depended on it. A learning rate that falls over the run depends on
it, and so does a method that has read how much of the run is done (`Method.progress`).

`training.max_minutes` is free under the same rule. Where something depends on it, a run that had a limit may be given
another one, and a line says so: such a run cannot be repeated to the bit anyway. A run without a limit can, and it may
not be given one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffdistill.data.text_files import split_column
from diffdistill.errors import UserError
from diffdistill.methods.base import Method

from .settings import TrainingSettings

FREE: Mapping[str, str] = {
    "gradient_accumulation_steps": "a step is a mean over the same samples, however they are cut; equal up to rounding",
    "gradient_checkpointing": "activations are computed a second time, to the same values",
    "cpu": "the device: equal up to rounding",
    "on_nonfinite": "alters what follows a loss that is not finite, and nothing before one",
    "max_skipped": "as on_nonfinite",
    "log_every": "what is written",
    "validate_every": "what is written",
    "checkpoint_every": "what is written",
    "checkpoints_limit": "what is kept",
    "export_every": "what is written",
    "export_best": "which weights are exported",
    "report_to": "what is written",
}
_RULED = ("samples", "max_minutes", "mixed_precision")  # compared by rules of their own


@dataclass(frozen=True)
class Recipe:
    """What a method was built from.

    Args:
        method: the method's class.
        arguments: the arguments of its constructor, as the config spells them.
        found: where the arguments that are paths were found, by argument.
    """

    method: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """What tells one run from another: plain JSON values.

    Args:
        settings: the settings that must stay the same, by dotted name.
        content: a digest of what is read from each setting that is a path, by dotted name.
        paths: of each of these, its spelling ("named"), its place ("at"), and that place relative to the run's folder
            ("beside"). These serve to find a path again and are never compared.
    """

    settings: dict[str, Any]
    content: dict[str, str]
    paths: dict[str, dict[str, str]]

    @classmethod
    def of(cls, method: Method, settings: TrainingSettings, recipe: Recipe, run: Path) -> Identity:
        """The identity of a run.

        Args:
            method: says which of its settings are free, and what was read from its paths.
            settings: those of training.
            recipe: the method's class and arguments.
            run: the run's folder.
        """
        training = {f"training.{k}": v for k, v in dataclasses.asdict(settings).items() if k not in (*FREE, *_RULED)}
        by_value = {k: v for k, v in recipe.arguments.items() if k not in method.free and k not in method.content}
        values = {"method": recipe.method, **training}
        values |= {f"method.{key}": value for key, value in by_value.items()}
        return cls(
            json.loads(json.dumps(values, default=str)),
            {f"method.{key}": value for key, value in method.content.items()},
            {f"method.{key}": _place(recipe, key, run) for key in method.content if key in recipe.arguments},
        )


def about_the_run(identity: Identity, settings: TrainingSettings, precision: str, processes: int) -> dict[str, Any]:
    """What a checkpoint says of its run, beside its state: plain JSON values, which a continuation is compared with."""
    return {
        "identity": dataclasses.asdict(identity),
        "length": settings.samples,
        "max_minutes": settings.max_minutes,
        "precision": precision,
        "processes": processes,
    }


def refuse_another_run(folder: Path, stored: Mapping[str, Any], identity: Identity, settings: TrainingSettings) -> None:
    """Raise UserError where a checkpoint is not of this run.

    Args:
        folder: the checkpoint.
        stored: the values in it.
        identity: the present run's.
        settings: the present run's; with mixed_precision "auto" they take the checkpoint's precision.
    """
    found = _differences(Identity(**stored["identity"]), identity)
    if settings.mixed_precision not in ("auto", stored["precision"]):
        found.append(f"training.mixed_precision was {stored['precision']}, is {settings.mixed_precision}")
    found += _length(stored, settings) + _clock(stored, settings)
    if found:
        raise UserError(
            f"{folder} is of a run with other settings: {'; '.join(found)}. "
            "Take the run's own config.yaml, or another output_dir"
        )


def remarks_on_the_clock(stored: Mapping[str, Any], settings: TrainingSettings) -> tuple[str, ...]:
    """A line for the user where the run continues with another `max_minutes`, and something follows the clock.

    Args:
        stored: the values in the checkpoint.
        settings: the present run's.
    """
    changed, follows = _other_clock(stored, settings), _follows(stored, settings)
    if not changed or not follows:
        return ()
    return (f"{changed}, and {follows}: that follows the new limit from here on",)


def find_again(
    values: Mapping[str, Any], stored: Mapping[str, Any], run: Path, elsewhere: Callable[[str], str] = str
) -> dict[str, str]:
    """Find the paths of a run that do not exist relative to the current directory.

    Args:
        values: the method's arguments as they are spelled now.
        stored: `Identity.paths` of a checkpoint.
        run: the folder that holds the checkpoint.
        elsewhere: gives a last place to look for a path.

    Returns:
        The place of each argument that has its old spelling and does not exist there.

    Raises:
        UserError: a path was found when the run was started, and is now in none of the places.
    """
    places = {}
    for name, place in stored.items():
        key = name.removeprefix("method.")
        value = values.get(key)
        if "at" not in place or value != place["named"] or _file(value).exists():
            continue
        candidates = [place["at"], os.path.normpath(run.resolve() / place["beside"]), elsewhere(value)]
        there = next((path for path in candidates if _file(path).exists()), None)
        if there is None:
            raise UserError(
                f"{name} is {value}, which is not in {Path.cwd()}, and not where the run read it, {place['at']}; "
                f"add --{name} PATH"
            )
        places[key] = there
    return places


def explain_missing(error: UserError, values: Mapping[str, Any], run: Path) -> UserError:
    """The error with the setting's name added, for a run that has no checkpoint to say where it read its paths.

    Args:
        error: why the method could not be built.
        values: the method's arguments.
        run: the run's folder.
    """
    for key, value in values.items():
        missing = isinstance(value, str) and not _file(value).exists()
        if missing and re.search(rf"(?<![\w./-]){re.escape(str(_file(value)))}(?![\w/-])", str(error)):
            return UserError(
                f"{error} (method.{key} is {value}, which is not in {Path.cwd()}, and {run} has no checkpoint yet "
                f"that says where it was read; add --method.{key} PATH)"
            )
    return error


def _differences(then: Identity, now: Identity) -> list[str]:
    if then.settings["method"] != now.settings["method"]:  # its arguments are others too
        return [f"method was {_shown(then.settings, 'method')}, is {_shown(now.settings, 'method')}"]
    by_value = (then.settings.keys() | now.settings.keys()) - then.content.keys() - now.content.keys()
    by_content = then.content.keys() | now.content.keys()
    values = [
        f"{key} was {_shown(then.settings, key)}, is {_shown(now.settings, key)}"
        for key in sorted(by_value)
        if key not in then.settings or key not in now.settings or then.settings[key] != now.settings[key]
    ]
    contents = [
        f"{key} was {_content(then, key)}, is {_content(now, key)}"
        for key in sorted(by_content)
        if then.content.get(key) != now.content.get(key)
    ]
    return values + contents


def _place(recipe: Recipe, key: str, run: Path) -> dict[str, str]:
    named = str(recipe.arguments[key])
    found = recipe.found.get(key, named)
    at, column = _file(found).absolute(), split_column(found)[1]
    if not at.exists():  # a hub id
        return {"named": named}
    behind = "" if column is None else f"::{column}"
    return {"named": named, "at": f"{at}{behind}", "beside": os.path.relpath(at.resolve(), run.resolve()) + behind}


def _file(value: str) -> Path:
    """The file of a setting that may name a column too, as prompts.csv::Prompt does."""
    return Path(split_column(value)[0])


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not a setting"


def _content(identity: Identity, key: str) -> str:
    if key not in identity.content:
        return _shown(identity.settings, key)
    named = identity.paths.get(key, {}).get("named", "")
    return f"{named} with content {identity.content[key][:8]}".strip()


def _length(stored: Mapping[str, Any], settings: TrainingSettings) -> list[str]:
    """What is wrong with `samples`, if anything."""
    then, now, done = stored["length"], settings.samples, stored["samples"]
    if now < done:
        return [f"training.samples was {then}, is {now}, fewer than the {done} that are done"]
    follows = _follows(stored, settings)
    return [f"training.samples was {then}, is {now}, and {follows}"] if now != then and follows else []


def _clock(stored: Mapping[str, Any], settings: TrainingSettings) -> list[str]:
    """What is wrong with `max_minutes`, if anything: a schedule that has followed samples alone would follow it."""
    changed, follows = _other_clock(stored, settings), _follows(stored, settings)
    return [f"{changed}, and {follows}"] if changed and follows and not stored["max_minutes"] else []


def _other_clock(stored: Mapping[str, Any], settings: TrainingSettings) -> str:
    then, now = stored["max_minutes"], settings.max_minutes
    return "" if then == now else f"training.max_minutes was {then:g}, is {now:g}"


def _follows(stored: Mapping[str, Any], settings: TrainingSettings) -> str:
    """What depends on how long the run is, if anything."""
    if stored["follows_progress"]:
        return "the method follows the share of the run that is done"
    if settings.lr_schedule != "constant":
        return "the learning rate falls over the run"
    return ""
