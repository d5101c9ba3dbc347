"""`sweep.json` and the pictures beside it, read as what comes from outside: every type, size and path is checked.

Notable:
- a record that is wrong anywhere is refused as a whole, with the place of the fault, as "rows[3].mean.kd";
- pictures are PNG files inside the sweep's folder; sizes are read from headers before pixels are decoded, and what
  goes on is drawn anew from the pixels, so that nothing else a file carries goes with it;
- what the record has beyond its contract is kept in `Sweep.raw` and not read.

Importing this module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from diffdistill.errors import UserError

VERSION = 2
MAX_JSON_BYTES = 32 << 20
MAX_PNG_BYTES = 64 << 20
MAX_PIXELS = 40_000_000  # of one strip
MAX_TEXT = 10_000
MAX_NAME = 400  # of a path in the record
MAX_GENERATOR = 100  # characters of a generator's name, which is part of files' names
MAX_NUMBER = 1e12  # so that differences of numbers stay finite
MAX_COUNTS = {"generators": 32, "rows": 1000, "seeds": 64, "metrics": 64, "prompts": 24}
PICTURE_SIDE = 128  # pictures larger than this are made smaller: by the sweep, and again by who reads it

Numbers = dict[str, float | None]
T = TypeVar("T")


@dataclass(frozen=True)
class Generator:
    """kind is "model" or "student"; digest is of its weights."""

    name: str
    model: str
    digest: str
    kind: str


@dataclass(frozen=True)
class Measured:
    """Numbers of one set of pictures. seeds: by seed; mean and sd: over them, an sd None where there is one seed.

    of_seeds: how many seeds the sweep has; where it is not complete, fewer may be here.

    strip: PNG of the sample prompts' pictures side by side; nearest: a PNG of two rows, pictures and the nearest
    training picture of each; distances: of those pairs. All relative to the sweep's folder.
    """

    seeds: dict[str, Numbers]
    mean: Numbers
    sd: Numbers
    of_seeds: int
    strip: str | None
    nearest: str | None
    distances: list[float] | None


@dataclass(frozen=True)
class Row(Measured):
    """One generator at one number of steps and one guidance; nfe: network passes a picture, None if not known."""

    generator: str
    steps: int
    guidance: float
    nfe: int | None


@dataclass(frozen=True)
class Floor(Measured):
    """Real pictures; unseen: agreement of held-out concepts' pictures with their captions, None where not measured."""

    unseen: Numbers | None


@dataclass(frozen=True)
class Retrieval:
    """How well towers retrieve captions of concepts held out from them: R@1 and R@5 among so many, mean cosine."""

    r1: float
    r5: float
    among: int
    score: float


@dataclass(frozen=True)
class Timing:
    """On what seconds_per_image was measured."""

    threads: int
    device: str


@dataclass(frozen=True)
class Sweep:
    """A checked sweep; `raw` is the record as it was read.

    prompts_of: "training", captions of an emoji set, or "file"; nearest_of: "training" or "reference", the pictures
    among which nearest ones are sought; held_out: of agreement's towers, where they have such a record; eta: noise
    while sampling, from 0 to 1, None where each generator was sampled with its own.
    """

    folder: Path
    raw: dict[str, Any]
    protocol: dict[str, Any]
    agreement: dict[str, Any] | None
    agreement_metric: str | None
    held_out: Retrieval | None
    reference: str
    reference_n: int
    pictures: int
    agreement_pictures: int | None
    seeds: list[int]
    complete: bool
    generators: list[Generator]
    rows: list[Row]
    floor: Floor | None
    prompts: list[str]
    prompts_of: str
    nearest_of: str
    timing: list[Timing]
    eta: float | None


@dataclass(frozen=True)
class Picture:
    """A PNG as it is shown: its bytes, width and height in pixels, and the side its pictures had in the file."""

    png: bytes
    width: int
    height: int
    side: int


def read_sweep(folder: str | Path) -> Sweep:
    """Read and check `folder/sweep.json`; pictures are looked at by `read_strip`.

    Raises:
        UserError: no such file, not JSON, or anything in it that is not as the contract says.
    """
    folder = Path(folder)
    path = folder / "sweep.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no sweep.json; name the folder that `diffdistill eval sweep` wrote")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes; a sweep has at most {MAX_JSON_BYTES}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()  # 1e999 and half a surrogate pair have no form
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file: {error}") from error
    try:
        return _sweep(folder, raw)
    except _FaultError as fault:
        raise UserError(_printable(f"{path}: {fault}")) from fault


def read_strip(folder: Path, name: str, columns: int, rows: int = 1) -> Picture:
    """A PNG of square pictures, `rows` by `columns`, made smaller where a picture is above `PICTURE_SIDE` pixels.

    Raises:
        UserError: a path that leaves the folder, no such file, not a PNG, too large, or of another shape.
    """
    from PIL import Image

    from diffdistill.data.decode import CorruptPictureError, decode

    path = folder / name
    inside = PurePosixPath(name)
    odd = inside.is_absolute() or ".." in inside.parts or any(c in "\\:" or not c.isprintable() for c in name)
    if odd or inside.suffix != ".png" or len(name) > MAX_NAME:
        raise UserError(f"{folder / 'sweep.json'}: {_short(name)} is not a path of a .png inside the sweep's folder")
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} leads out of the sweep's folder")
        if not path.is_file():
            raise UserError(f"{path}, which sweep.json names, is not there")
        if path.stat().st_size > MAX_PNG_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes; a strip has at most {MAX_PNG_BYTES}")
        pixels = decode(path.read_bytes(), "it", ("PNG",), MAX_PIXELS)
    except (OSError, RuntimeError, CorruptPictureError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{path} is not a readable PNG: {error}") from error
    _, height, width = pixels.shape
    side = height // rows
    if side * rows != height or side * columns != width:
        raise UserError(f"{path} is {width}x{height}: not {rows} x {columns} square pictures")
    shown = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if side > PICTURE_SIDE:
        shown = shown.resize((PICTURE_SIDE * columns, PICTURE_SIDE * rows), Image.Resampling.LANCZOS)
    out = BytesIO()
    shown.save(out, format="PNG", optimize=True)
    return Picture(out.getvalue(), shown.width, shown.height, side)


class _FaultError(Exception):
    """What is wrong, and where in the record."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _sweep(folder: Path, raw: Any) -> Sweep:
    top = _mapping(raw, "the record")
    if top.get("version") != VERSION or isinstance(top.get("version"), bool):
        raise _FaultError(f"version is {_short(top.get('version'))}; this program reads version {VERSION}")
    reference = _mapping(top.get("reference"), "reference")
    generators = _each(top, "generators", _generator)
    names = [generator.name for generator in generators]
    seeds = _each(top, "seeds", _whole)
    rows = _each(top, "rows", lambda value, where: _row(value, where, len(seeds)))
    for what, values in (("generators", names), ("seeds", seeds)):
        if len(set(values)) != len(values) or not values:
            raise _FaultError(f"{what} should be one or more different ones, got {_short(values)}")
    seen = set()
    for i, row in enumerate(rows):
        if row.generator not in names:
            raise _FaultError(f"rows[{i}].generator is {_short(row.generator)}, which generators does not name")
        if (key := (row.generator, row.steps, row.guidance)) in seen:
            raise _FaultError(f"rows[{i}] repeats {key[0]!r} at {key[1]} steps and guidance {key[2]:g}")
        seen.add(key)
        if odd := set(row.seeds) - {str(seed) for seed in seeds}:
            raise _FaultError(f"rows[{i}].seeds has {_short(min(odd))}, which seeds does not name")
    _each(top, "metrics", _text)
    complete = top.get("complete")
    if not isinstance(complete, bool):
        raise _FaultError(f"complete should be true or false, got {_short(complete)}")
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
        raise _FaultError(f"{where} should be a number, got {_short(value)}")
    if not abs(value) <= MAX_NUMBER:
        raise _FaultError(f"{where} should be a number up to {MAX_NUMBER:g}, got {_short(value)}")
    return float(value)


def _share(value: Any, where: str) -> float:
    share = _number(value, where)
    if not 0 <= share <= 1:
        raise _FaultError(f"{where} is {share:g}; it should be in [0, 1]")
    return share


def _whole(value: Any, where: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**62:
        raise _FaultError(f"{where} should be a whole number from {least}, got {_short(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT:
        raise _FaultError(f"{where} should be a text of 1 to {MAX_TEXT} characters, got {_short(value)}")
    return value


def _one_of(value: Any, where: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _FaultError(f"{where} is {_short(value)}; it should be {' or '.join(choices)}")
    return str(value)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _FaultError(f"{where} should be an object, got {_short(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_COUNTS.get(where, MAX_COUNTS["prompts"]):
        most = MAX_COUNTS.get(where, MAX_COUNTS["prompts"])
        raise _FaultError(f"{where} should be a list of at most {most}, got {_short(value)}")
    return value


def _each(entry: Mapping[str, Any], key: str, read: Callable[[Any, str], T]) -> list[T]:
    return [read(value, f"{key}[{i}]") for i, value in enumerate(_list(entry.get(key), key))]


def _optional(value: Any, where: str, read: Callable[[Any, str], T]) -> T | None:
    return None if value is None else read(value, where)


def _printable(text: str) -> str:
    """Without control characters, which a terminal would obey, and cut."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def _short(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
