"""Reading `sweep.json`, which is not trusted: every type and size in it is checked.

A record that is wrong anywhere is refused as a whole, and the error names the place, as in "rows[3].mean.kd". What a
record has beyond its contract is kept in `Sweep.raw` and is not read.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffdistill.errors import UserError
from diffdistill.evaluation.page.record import (
    MAX_COUNTS,
    MAX_JSON_BYTES,
    MAX_NUMBER,
    MAX_TEXT,
    VERSION,
    Floor,
    Generator,
    Numbers,
    Retrieval,
    Row,
    Sweep,
    Timing,
)

T = TypeVar("T")


def read_sweep(folder: str | Path) -> Sweep:
    """Read and check `folder/sweep.json`; `strips.read_strip` reads the images.

    Raises:
        UserError: there is no such file, it is not JSON, or something in it breaks the contract.
    """
    folder = Path(folder)
    path = folder / "sweep.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no sweep.json; name the folder that `diffdistill eval sweep` wrote")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes; a sweep has at most {MAX_JSON_BYTES}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        json.dumps(
            raw, ensure_ascii=False, allow_nan=False
        ).encode()  # 1e999 and half a surrogate pair cannot be written again
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file: {error}") from error
    try:
        return _sweep(folder, raw)
    except _FaultError as fault:
        raise UserError(_printable(f"{path}: {fault}")) from fault


class _FaultError(Exception):
    """What is wrong, and where in the record."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _sweep(folder: Path, raw: Any) -> Sweep:
    top = _mapping(raw, "the record")
    if top.get("version") != VERSION or isinstance(top.get("version"), bool):
        raise _FaultError(f"version is {shortened(top.get('version'))}; this program reads version {VERSION}")
    reference = _mapping(top.get("reference"), "reference")
    generators = _each(top, "generators", _generator)
    names = [generator.name for generator in generators]
    seeds = _each(top, "seeds", _whole)
    rows = _each(top, "rows", lambda value, where: _row(value, where, len(seeds)))
    for what, values in (("generators", names), ("seeds", seeds)):
        if len(set(values)) != len(values) or not values:
            raise _FaultError(f"{what} should be one or more different ones, got {shortened(values)}")
    seen = set()
    for i, row in enumerate(rows):
        if row.generator not in names:
            raise _FaultError(f"rows[{i}].generator is {shortened(row.generator)}, which generators does not name")
        if (key := (row.generator, row.steps, row.guidance)) in seen:
            raise _FaultError(f"rows[{i}] repeats {key[0]!r} at {key[1]} steps and guidance {key[2]:g}")
        seen.add(key)
        if odd := set(row.seeds) - {str(seed) for seed in seeds}:
            raise _FaultError(f"rows[{i}].seeds has {shortened(min(odd))}, which seeds does not name")
    _each(top, "metrics", _text)
    complete = top.get("complete")
    if not isinstance(complete, bool):
        raise _FaultError(f"complete should be true or false, got {shortened(complete)}")
    prompts = _each(_mapping(top.get("samples"), "samples"), "prompts", _text)
    if not prompts:
        raise _FaultError("samples.prompts is empty")
    agreement = _optional(top.get("agreement"), "agreement", _mapping)
    return Sweep(
        folder=folder,
        raw=top,
        protocol=_mapping(top.get("protocol"), "protocol"),
        agreement=agreement,
        agreement_metric=_optional(top.get("agreement_metric"), "agreement_metric", _text),
        held_out=_optional((agreement or {}).get("held_out"), "agreement.held_out", _retrieval),
        reference=_text(reference.get("source"), "reference.source"),
        reference_n=_whole(reference.get("n"), "reference.n", 1),
        pictures=_whole(top.get("pictures"), "pictures", 1),
        agreement_pictures=_optional(top.get("agreement_pictures"), "agreement_pictures", _whole),
        seeds=seeds,
        complete=complete,
        generators=generators,
        rows=rows,
        floor=_optional(top.get("floor"), "floor", lambda value, where: _floor(value, where, len(seeds))),
        prompts=prompts,
        prompts_of=_one_of(top.get("prompts_of"), "prompts_of", ("training", "file")),
        nearest_of=_one_of(top.get("nearest_of"), "nearest_of", ("training", "reference")),
        timing=_each(_mapping(top.get("timing"), "timing"), "on", _timing),
        eta=_optional(top.get("eta"), "eta", _share),
    )


def _generator(value: Any, where: str) -> Generator:
    entry = _mapping(value, where)
    fields = {key: _text(entry.get(key), f"{where}.{key}") for key in ("name", "model", "digest")}
    return Generator(**fields, kind=_one_of(entry.get("kind"), f"{where}.kind", ("model", "student")))


def _retrieval(value: Any, where: str) -> Retrieval:
    captions = _mapping(_mapping(value, where).get("captions"), f"{where}.captions")
    r1, r5, score = (_number(captions.get(key), f"{where}.captions.{key}") for key in ("r1", "r5", "score"))
    return Retrieval(r1, r5, _whole(captions.get("among"), f"{where}.captions.among", 1), score)


def _timing(value: Any, where: str) -> Timing:
    entry = _mapping(value, where)
    return Timing(_whole(entry.get("threads"), f"{where}.threads", 1), _text(entry.get("device"), f"{where}.device"))


def _floor(value: Any, where: str, of_seeds: int) -> Floor:
    unseen = _optional(_mapping(value, where).get("unseen"), f"{where}.unseen", _numbers)
    return Floor(**_measured(value, where, of_seeds), unseen=unseen)


def _row(value: Any, where: str, of_seeds: int) -> Row:
    entry = _mapping(value, where)
    guidance = _number(entry.get("guidance"), f"{where}.guidance")
    if not 0 <= guidance <= 1e6:
        raise _FaultError(f"{where}.guidance is {guidance:g}; it should be in [0, 1e6]")
    return Row(
        **_measured(entry, where, of_seeds),
        generator=_text(entry.get("generator"), f"{where}.generator"),
        steps=_whole(entry.get("steps"), f"{where}.steps", 1),
        guidance=guidance,
        nfe=_optional(entry.get("nfe"), f"{where}.nfe", _whole),
    )


def _measured(value: Any, where: str, of_seeds: int) -> dict[str, Any]:
    entry = _mapping(value, where)
    seeds = _mapping(entry.get("seeds"), f"{where}.seeds")
    distances = _optional(entry.get("nearest_distances"), f"{where}.nearest_distances", _list)
    return {
        "seeds": {seed: _numbers(seeds[seed], f"{where}.seeds.{seed}") for seed in seeds},
        "mean": _numbers(entry.get("mean"), f"{where}.mean"),
        "sd": _optional(entry.get("sd"), f"{where}.sd", _numbers) or {},
        "of_seeds": of_seeds,
        "strip": _optional(entry.get("strip"), f"{where}.strip", _text),
        "nearest": _optional(entry.get("nearest"), f"{where}.nearest", _text),
        "distances": distances and [_number(d, f"{where}.nearest_distances[{i}]") for i, d in enumerate(distances)],
    }


def _numbers(value: Any, where: str) -> Numbers:
    entry = _mapping(value, where)
    if len(entry) > MAX_COUNTS["metrics"]:
        raise _FaultError(f"{where} has {len(entry)} numbers; there may be {MAX_COUNTS['metrics']}")
    return {key: _optional(number, f"{where}.{key}", _number) for key, number in entry.items()}


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FaultError(f"{where} should be a number, got {shortened(value)}")
    if not abs(value) <= MAX_NUMBER:
        raise _FaultError(f"{where} should be a number up to {MAX_NUMBER:g}, got {shortened(value)}")
    return float(value)


def _share(value: Any, where: str) -> float:
    share = _number(value, where)
    if not 0 <= share <= 1:
        raise _FaultError(f"{where} is {share:g}; it should be in [0, 1]")
    return share


def _whole(value: Any, where: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
        raise _FaultError(f"{where} should be a whole number from {least}, got {shortened(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise _FaultError(f"{where} should be a text of 1 to {MAX_TEXT} characters, got {shortened(value)}")
    return value


def _one_of(value: Any, where: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _FaultError(f"{where} is {shortened(value)}; it should be {' or '.join(choices)}")
    return str(value)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _FaultError(f"{where} should be an object, got {shortened(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_COUNTS.get(where, MAX_COUNTS["prompts"]):
        most = MAX_COUNTS.get(where, MAX_COUNTS["prompts"])
        raise _FaultError(f"{where} should be a list of at most {most}, got {shortened(value)}")
    return value


def _each(entry: Mapping[str, Any], key: str, read: Callable[[Any, str], T]) -> list[T]:
    return [read(value, f"{key}[{i}]") for i, value in enumerate(_list(entry.get(key), key))]


def _optional(value: Any, where: str, read: Callable[[Any, str], T]) -> T | None:
    return None if value is None else read(value, where)


def _printable(text: str) -> str:
    """Text for a terminal: shortened, and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def shortened(value: Any) -> str:
    """A value in an error message, in at most 60 characters."""
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
