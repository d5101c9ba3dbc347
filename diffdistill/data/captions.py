"""Captions, and which image each belongs to: by name wherever the file names images, by order only where it doesn't."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.data.listing import ending, normal, without_ending
from diffdistill.data.prompts import caption_entries
from diffdistill.data.source import Source
from diffdistill.data.text_files import Entry, decode_text, entry_of_record, lines_of
from diffdistill.errors import UserError

NAMES = ("file_name", "filename", "file", "file_path", "filepath", "path", "image", "image_file", "image_path")
IDS = ("image_id", "id", "key")
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Captions:
    """Captions of a file.

    Attributes:
        file: for messages.
        texts: one or more.
        names: the image that each belongs to, where the file says it.
        ids: a number or key of each one's image, where the file has that alone.
    """

    file: str
    texts: list[str]
    names: list[str] | None = None
    ids: list[str] | None = None


def captions_of_file(path: str | Path) -> Captions:
    """The captions of a file, of any format that `text_files` reads, and the images that it names.

    Raises:
        UserError: as `prompts.caption_entries`, or a record that names no image where others do.
    """
    entries = caption_entries(path)
    texts = [entry.text for entry in entries]
    names = _field(entries, NAMES, path)
    return Captions(str(path), texts, names, _field(entries, IDS, path) if names is None else None)


def caption_of_files(files: Sequence[tuple[str, bytes]], what: str) -> str:
    """The caption of an image out of the files beside it: the first line of a .txt, or a .json's caption.

    Args:
        files: names and contents, of which the first counts.
        what: the image's name, for messages.

    Raises:
        UserError: no text, or none in it.
    """
    name, data = files[0]
    text = decode_text(data, name)
    if ending(name) == ".txt":
        found = next((line for line in lines_of(text) if line), "")
    else:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{what}: {name} beside it is not JSON: {error}") from error
        found = entry_of_record(record, f"{name} beside it", what, "caption").text
    if not found:
        raise UserError(f"{what}: {name} beside it is empty; it should hold the caption")
    return found


def captions_for(captions: Captions, source: Source, n: int) -> tuple[list[str], dict[str, Any]]:
    """The captions of the first n images of a source, and how they were paired, for the report.

    Where the file names images, each image takes the caption of its own name: of its path in the source, else without
    the ending, else without the folders, else both; the first of these by which every image has one counts. Of several
    captions of one image the first is taken. Where it names none, caption i is image i's.

    Raises:
        UserError: an image without a caption, names that fit several images, or, in order, another number of them.
    """
    found: dict[str, Any] = {"file": captions.file}
    paths = [source.path(index) for index in range(len(source))]
    known = [path for path in paths if path is not None]
    if captions.names is not None and len(known) == len(paths):
        rows = _by_name(captions.names, known, n, (normal, _stem, _last, _last_stem))
        if rows is None:
            raise UserError(f"{captions.file} {_lacking(captions.names, known[:n], source.name)}")
        found |= {"paired_by": "name", **_counted(rows, len(captions.texts), captions.names)}
        return [captions.texts[row] for row in rows], found
    if captions.ids is not None and len(known) == len(paths):
        rows = _by_name(captions.ids, known, n, (_last_stem, _number))
        if rows is not None:
            found |= {"paired_by": "id", **_counted(rows, len(captions.texts), captions.ids)}
            return [captions.texts[row] for row in rows], found
        given = {key(name) for name in captions.ids for key in (_last_stem, _number)}
        if any(key(path) in given for path in known for key in (_last_stem, _number)):
            raise UserError(f"{captions.file} {_lacking(captions.ids, known[:n], source.name)}")
    if len(captions.texts) not in (n, len(source)):
        raise UserError(f"{captions.file} holds {len(captions.texts)} captions, {source.name} {len(source)} pictures")
    order = "as stored" if len(known) < len(paths) else "by name, runs of digits by their value"
    return captions.texts[:n], {**found, "paired_by": "order", "order_of_images": order}


def _field(entries: Sequence[Entry], known: Sequence[str], path: str | Path) -> list[str] | None:
    """The values of the first field of a known name that records have; they all must have it then."""
    for name in known:
        values: list[str | None] = []
        for entry in entries:
            value = next((v for k, v in entry.fields.items() if isinstance(k, str) and k.strip().lower() == name), None)
            known_form = isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())
            values.append(str(value).strip() if known_form else None)
        found = [value for value in values if value is not None]
        if found and len(found) < len(values):
            where = entries[values.index(None)].where
            raise UserError(f"{path}, {where} has no {name}, and other captions have; each should name its image")
        if found:
            return found
    return None


def _by_name(
    names: Sequence[str], paths: Sequence[str], n: int, forms: Sequence[Callable[[str], str]]
) -> list[int] | None:
    """For each of the first n images the row of its first caption, in the first form of names that fits all."""
    for form in forms:
        images = [form(path) for path in paths]
        rows: dict[str, int] = {}
        whole: dict[str, set[str]] = {}
        for row, name in enumerate(names):
            rows.setdefault(form(name), row)
            whole.setdefault(form(name), set()).add(normal(name))
        if all(image and image in rows for image in images[:n]):
            if len(set(images)) < len(images) or any(len(whole[image]) > 1 for image in images[:n]):
                return None
            return [rows[image] for image in images[:n]]
    return None


def _counted(rows: Sequence[int], captions: int, names: Sequence[str]) -> dict[str, int]:
    """Captions that were not used, of images that are measured and of others."""
    mine = {names[row] for row in rows}
    more = sum(name in mine for name in names) - len(rows)
    found = {"further_captions_of_these_images": more, "captions_of_other_images": captions - len(rows) - more}
    return {key: value for key, value in found.items() if value}


def _lacking(names: Sequence[str], paths: Sequence[str], source: str) -> str:
    given = {form(name) for name in names for form in (normal, _stem, _last, _last_stem, _number)}
    without = [path for path in paths if not given & {normal(path), _stem(path), _last(path), _last_stem(path)}]
    if not without:
        return f"names images of {source} in a way that fits several of them; write their paths inside it"
    more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
    return f"has no caption for {', '.join(without[:_SHOWN])}{more} of {source}"


def _stem(name: str) -> str:
    return without_ending(normal(name))


def _last(name: str) -> str:
    return normal(name).rpartition("/")[2]


def _last_stem(name: str) -> str:
    return without_ending(_last(name))


def _number(name: str) -> str:
    """The number that a name ends in, as in COCO_val2014_000000391895.jpg; empty where it ends in none."""
    digits = re.search(r"[0-9]+$", _last_stem(name))
    return str(digits[0].lstrip("0") or "0") if digits else ""
