"""Captions, and the image that each belongs to: by name where the file names images, and by order where it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.data.listing import PICTURES, ending, normal, without_ending
from diffdistill.data.prompts import caption_entries
from diffdistill.data.source import Source
from diffdistill.data.text_files import decode_text, entry_of_record, lines_of, refuse_other_formats
from diffdistill.errors import UserError

NAMES = (
    "file_name",
    "filename",
    "file",
    "file_path",
    "filepath",
    "path",
    "image",
    "image_file",
    "image_path",
    "picture",
)
IDS = ("image_id", "id", "key")
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Captions:
    """Captions of a file.

    Attributes:
        file: name of the file, for messages.
        texts: the captions, one or more.
        fields: the values that stand beside the captions, by field. A value is None where a caption lacks it, or where
            it is neither text nor a number.
        where: the place of each caption in the file, for messages.
    """

    file: str
    texts: list[str]
    fields: dict[str, list[str | None]]
    where: list[str]


def captions_of_file(path: str | Path) -> Captions:
    """The captions of a file, of any format that `text_files` reads, with the values beside them.

    Raises:
        UserError: see `prompts.caption_entries`.
    """
    entries = caption_entries(path)
    keys = dict.fromkeys(key for entry in entries for key in entry.fields if key != entry.key)
    fields = {str(key): [_as_name(entry.fields.get(key)) for entry in entries] for key in keys}
    return Captions(str(path), [entry.text for entry in entries], fields, [entry.where for entry in entries])


def caption_of_files(files: Sequence[tuple[str, bytes]], what: str) -> str:
    """The caption of an image from the files beside it: the first line of a text file, or the caption in a .json.

    Args:
        files: names and contents of the files; the first file counts.
        what: the image's name, for messages.

    Raises:
        UserError: the file is no text, or holds no caption.
    """
    name, data = files[0]
    text = decode_text(data, name)
    if ending(name) != ".json":
        refuse_other_formats(lines_of(text), f"{what}: {name} beside it", "caption")
        found = next((line for line in lines_of(text) if line), "")
    else:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{what}: {name} beside it is not JSON: {error}") from error
        found = entry_of_record(record, f"{name} beside it", what, "caption").text
    if not found:
        raise UserError(f"{what}: {name} beside it is empty; it should hold the caption")
    if not any(letter.isalpha() for letter in found):
        raise UserError(f"{what}: {name} beside it holds no words, but {found[:40]!r}; it should hold the caption")
    return found


def captions_for(captions: Captions, source: Source, n: int) -> tuple[list[str], dict[str, Any]]:
    """The captions of the first n images of a source, and how they were paired, for the report.

    Where the file names images, each image takes the caption with its own name. Four forms of the name are tried: the
    path in the source, the path without its ending, the name without its folders, and that without its ending. The
    first form by which every image has a caption counts. If an image has several captions, the first one is taken.

    A field names images if its name is one of `NAMES`, or if it holds the file name of an image of the source. Ids, in
    a field with a name of `IDS`, are compared with the images' names and with the numbers in them. An "id" or "key"
    that fits no image belongs to the record itself. Where nothing names an image, caption i belongs to image i.

    Raises:
        UserError: an image has no caption, a caption lacks the name that other captions have, the names are those of
            other images or fit several images, or captions that pair by order are not as many as the images.
    """
    found: dict[str, Any] = {"file": captions.file}
    paths = [source.path(index) for index in range(len(source))]
    known = [path for path in paths if path is not None]
    if len(known) == len(paths):
        if (field := _called(captions, NAMES) or _holding_names(captions, known)) is not None:
            names = _complete(captions, field)
            rows = _by_name(names, known, n, (normal, _stem, _last, _last_stem))
            if rows is None:
                raise UserError(f"{captions.file}, in {field}, {_lacking(names, known[:n], source.name)}")
            found |= {"paired_by": "name", "field": field, **_counted(rows, names)}
            return [captions.texts[row] for row in rows], found
        if (field := _called(captions, IDS)) is not None:
            ids = _complete(captions, field)
            rows = _by_name(ids, known, n, (_last_stem, _number))
            if rows is not None:
                found |= {"paired_by": "id", "field": field, **_counted(rows, ids)}
                return [captions.texts[row] for row in rows], found
            given = {key(name) for name in ids for key in (_last_stem, _number)}
            without = [path for path in known[:n] if not given & {_last_stem(path), _number(path)}]
            if len(without) < len(known[:n]) or field.strip().lower() == "image_id":
                raise UserError(
                    f"{captions.file}: the ids of {field}, {_some(ids)}, do not fit "
                    f"{_some(without) or 'one image each'} of {source.name}; "
                    "name the file of each in a column file_name"
                )
        for field, values in captions.fields.items():
            named = [value for value in values if value is not None and ending(value) in PICTURES]
            if named:
                raise UserError(
                    f"{captions.file} names images in {field}, {_some(named)}, and {source.name} has none of these; "
                    "leave the column out if the captions are in the order of the images"
                )
    if len(captions.texts) not in (n, len(source)):
        raise UserError(f"{captions.file} holds {len(captions.texts)} captions, {source.name} {len(source)} images")
    order = "as stored" if len(known) < len(paths) else "by name, runs of digits by their value"
    return captions.texts[:n], {**found, "paired_by": "order", "order_of_images": order}


def _as_name(value: Any) -> str | None:
    """A value that can name an image: text, a whole number, or the path in the record of an image; else None."""
    if isinstance(value, dict):
        value = value.get("path") or value.get("file_name")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    plain = isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())
    return str(value).strip() if plain else None


def _called(captions: Captions, names: Sequence[str]) -> str | None:
    """The first field that has one of these names, in capitals or not, and holds something."""
    by_name = {field.strip().lower(): field for field in reversed(captions.fields) if any(captions.fields[field])}
    return next((by_name[name] for name in names if name in by_name), None)


def _holding_names(captions: Captions, paths: Sequence[str]) -> str | None:
    """The first field, of any name, that holds the file name of one of these images."""
    files = {_last(path) for path in paths}
    return next((field for field, values in captions.fields.items() if files & {_last(v) for v in values if v}), None)


def _complete(captions: Captions, field: str) -> list[str]:
    values = captions.fields[field]
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        where = captions.where[values.index(None)]
        raise UserError(f"{captions.file}, {where} has no {field}, but other captions do; each should name its image")
    return found


def _by_name(
    names: Sequence[str], paths: Sequence[str], n: int, forms: Sequence[Callable[[str], str]]
) -> list[int] | None:
    """For each of the first n images the row of its first caption, by the first form of names that fits all images.

    None where no form fits, or where a name stands for several images.
    """
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


def _counted(rows: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """How many captions were not used: further ones of the same images, and those of other images."""
    mine = {names[row] for row in rows}
    more = sum(name in mine for name in names) - len(rows)
    found = {"further_captions_of_these_images": more, "captions_of_other_images": len(names) - len(rows) - more}
    return {key: value for key, value in found.items() if value}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _lacking(names: Sequence[str], paths: Sequence[str], source: str) -> str:
    given = {form(name) for name in names for form in (normal, _stem, _last, _last_stem, _number)}
    without = [path for path in paths if not given & {normal(path), _stem(path), _last(path), _last_stem(path)}]
    if not without:
        return f"names images of {source} in a way that fits several of them; write their paths inside it"
    return f"has no caption for {_some(without)} of {source}"


def _stem(name: str) -> str:
    return without_ending(normal(name))


def _last(name: str) -> str:
    return normal(name).rpartition("/")[2]


def _last_stem(name: str) -> str:
    return without_ending(_last(name))


def _number(name: str) -> str:
    """The number at the end of a name, as in COCO_val2014_000000391895.jpg; empty where there is none."""
    digits = re.search(r"[0-9]+$", _last_stem(name))
    return str(digits[0].lstrip("0") or "0") if digits else ""
