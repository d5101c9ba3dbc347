"""Prompts and captions from files. This is the only place where such a file is read.

    .txt           one per line
    .jsonl         one JSON object per line, with a "prompt", "caption" or "text"
    .csv, .tsv     a table with a header line and a column of such a name; FILE.csv::COLUMN names another column
    .json          COCO's captions: {"annotations": [{"image_id": ..., "caption": ...}, ...], "images": [...]}

Notable:
- a file is read in the format that its ending names. If it plainly holds another format, it is refused;
- text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; the mark is not part of the text;
- a line ends only where its format says so: at LF, CR LF or CR in a .txt, and at LF in a .jsonl. Unicode's own
  separators stay in the text.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffdistill.data.plain_lines import instead_of_lines
from diffdistill.errors import UserError

COLUMNS = ("prompt", "prompts", "caption", "captions", "text")  # names of fields of text, in capitals or not
MAX_BYTES = 2 << 30
_READ = ".txt (one per line), .jsonl, .csv, .tsv and COCO's captions (.json)"
_MARKS = (  # UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class Entry:
    """One text of a file.

    Attributes:
        text: the text, without space around it; it may be empty.
        where: its place, such as "line 3", for messages.
        fields: the whole record that the text is from, in a format that has records.
        key: name of the field that holds the text.
    """

    text: str
    where: str
    fields: dict[str, Any] = field(default_factory=dict)
    key: str = ""


def read_entries(path: str | Path, what: str = "prompt") -> list[Entry]:
    """All texts of a file in its order, with their records.

    Args:
        path: the file; after "::", the name of the column (or key) that holds the texts.
        what: "prompt" or "caption". Among several fields of text, the one of this name is taken. Messages use the word.

    Raises:
        UserError: there is no such file, it has another format or more than 2 GiB, or a text does not fit the format.
    """
    name, column = split_column(path)
    file = Path(name)
    if file.is_dir() or not file.exists():
        raise UserError(
            f"{file} is a folder, not a {what} file" if file.is_dir() else f"there is no {what} file {file}"
        )
    kind = file.suffix.lower()
    reader = {".txt": _lines, ".jsonl": _json_lines, ".csv": _table, ".tsv": _table, ".json": _coco}.get(kind)
    if reader is None:
        raise UserError(f"{file} is not a {what} file that can be read; these can: {_READ}")
    if column is not None and kind in (".txt", ".json"):
        raise UserError(f"{path}: a {kind} has no columns; leave out ::{column}")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise UserError(f"{file} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    entries = list(reader(decode_text(file.read_bytes(), str(file)), file, what, column))
    for entry in entries:
        check_text(entry.text, f"{file}, {entry.where}")
    return entries


def decode_text(data: bytes, name: str) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        UserError: the bytes are no text in the encoding that the mark names, or in UTF-8 without a mark.
    """
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not {encoding.upper()} text: {error}; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{name} holds NUL, so it is no text, or UTF-16 without a byte order mark; save it as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a text file, each without space or a byte order mark around it."""
    lines = [_stripped(line) for line in _LINE_END.split(text)]
    return lines[:-1] if lines and not lines[-1] else lines


def text_of_record(record: dict[str, Any], what: str, column: str | None = None) -> str:
    """The name of the field that holds a record's text: `column`, or the record's field that is named in `COLUMNS`.

    Raises:
        ValueError: the record has no such field, or several and none of them is named `what`.
    """
    if column is not None:
        if column not in record:
            raise ValueError(f"it has no {column!r}, but {_names(record)}")
        return column
    found = [name for name in record if isinstance(name, str) and name.strip().lower() in COLUMNS]
    own = [name for name in found if name.strip().lower() == what]
    if len(own) == 1 or len(found) == 1:
        return (own or found)[0]
    if found:
        raise ValueError(f"it has {_names(found)}; write FILE::NAME to name the one that holds the {what}s")
    raise ValueError(
        f'it has no "{what}", but {_names(record)}; write FILE::NAME to name the one that holds the {what}s'
    )


def check_text(text: str, where: str) -> None:
    """Raise UserError for text that UTF-8 cannot hold, such as JSON's "\\ud800" or an argument that was no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has {ascii(text[error.start])} in it, half of a character; write it whole") from error


def split_column(path: str | Path) -> tuple[str, str | None]:
    """The file and the column of "FILE::COLUMN"; the column is None if none is named, or if a file has that whole name.

    >>> split_column("parti.tsv::Prompt"), split_column("prompts.txt")
    (('parti.tsv', 'Prompt'), ('prompts.txt', None))
    """
    name, separator, column = str(path).rpartition("::")
    return (str(path), None) if not separator or Path(path).exists() else (name, column)


def _stripped(text: str) -> str:
    return text.strip().strip("\ufeff").strip()  # files joined end to end leave marks inside


def _names(names: Any) -> str:
    shown = ", ".join(str(name) for name in list(names)[:8])
    return (shown[:200] or "nothing") + (", ..." if len(names) > 8 else "")


def refuse_other_formats(lines: Sequence[str], file: str | Path, what: str) -> None:
    """Raise UserError where a text file's lines are plainly of another format."""
    if instead := instead_of_lines(lines, COLUMNS):
        raise UserError(
            f"{file} should hold one {what} per line, but holds {instead}; "
            f"give it the ending of its format, or write {what}s that only look like it into a .jsonl"
        )


def _lines(text: str, file: Path, what: str, column: str | None) -> Iterator[Entry]:
    lines = lines_of(text)
    refuse_other_formats(lines, file, what)
    for number, line in enumerate(lines, 1):
        yield Entry(line, f"line {number}")


def _json_lines(text: str, file: Path, what: str, column: str | None) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        line, where = _stripped(line), f"line {number}"
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, {where} is not JSON: {error}") from error
        yield entry_of_record(record, where, file, what, column)


def entry_of_record(record: Any, where: str, file: str | Path, what: str, column: str | None = None) -> Entry:
    """The text of one record, with the record.

    Raises:
        UserError: the record is no object, has no field for the text, or the field holds something else.
    """
    if not isinstance(record, dict):
        raise UserError(f'{file}, {where} should be an object with a "{what}": {str(record)[:80]}')
    try:
        key = text_of_record(record, what, column)
    except ValueError as error:
        raise UserError(f"{file}, {where}: {error}") from error
    value = record[key]
    if not isinstance(value, str):
        raise UserError(f"{file}, {where}: {key} should be text, but is {str(value)[:80]!r}")
    check_text(value, f"{file}, {where}")
    return Entry(_stripped(value), where, record, key)


def _table(text: str, file: Path, what: str, column: str | None) -> Iterator[Entry]:
    tabs = file.suffix.lower() == ".tsv"
    rows = _rows_of_tabs(text) if tabs else _rows_of_commas(text, file)
    where, header = next(rows, ("", []))
    header = [_stripped(name) for name in header]
    try:
        key = text_of_record(dict.fromkeys(header), what, column)
    except ValueError as error:
        raise UserError(f"{file}, its header line: {error}") from error
    if header.count(key) > 1:
        raise UserError(f"{file} has {header.count(key)} columns called {key}; their names should differ")
    for where, row in rows:
        if len(row) != len(header):
            more = "no field may hold a tab" if tabs else "put a field that holds a separator in double quotes"
            raise UserError(f"{file}, {where} has {len(row)} fields and the header {len(header)}; {more}")
        record = dict(zip(header, row, strict=True))
        if _LINE_END.search(_stripped(record[key])):  # a stray quote opens a field that takes in the lines after it
            raise UserError(f"{file}, {where}: the {what} has several lines; write it in one, and double its quotes")
        yield entry_of_record(record, where, file, what, key)


def _rows_of_commas(text: str, file: Path) -> Iterator[tuple[str, list[str]]]:
    """The place and the fields of each row of a .csv, with fields quoted as spreadsheets quote them."""
    first = _LINE_END.split(text, maxsplit=1)[0]
    delimiter = ";" if "," not in first and ";" in first else ","  # ; where numbers are written with a comma
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 0
    try:
        for row in rows:
            where, start = f"line {start + 1}", rows.line_num
            if row:
                yield where, row
    except csv.Error as error:
        raise UserError(f"{file}, line {rows.line_num} is no line of a table: {error}") from error


def _rows_of_tabs(text: str) -> Iterator[tuple[str, list[str]]]:
    """The same for a .tsv, where a quote is a letter. A field that is quoted whole, as spreadsheets do, is unquoted."""
    for number, line in enumerate(_LINE_END.split(text), 1):
        if line:
            yield f"line {number}", [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell


def _coco(text: str, file: Path, what: str, column: str | None) -> Iterator[Entry]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise UserError(
            f"{file} is JSON, but not COCO's captions, which have a list of annotations; "
            f'write one record per line into a .jsonl, such as {{"{what}": "a blue apple"}}'
        )
    images = content.get("images")
    listed = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    names = {image.get("id"): image.get("file_name") or image.get("coco_url") for image in listed}
    for number, annotation in enumerate(annotations, 1):
        where = f"annotation {number}"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("caption"), str):
            raise UserError(f"{file}, {where} has no caption; these are not COCO's captions")
        image = annotation.get("image_id")
        name = names.get(image) if isinstance(image, int | str) else None
        fields = {**annotation, "file_name": name} if isinstance(name, str) else annotation
        yield Entry(_stripped(annotation["caption"]), where, fields, "caption")
