"""Folders of pictures as other tools expect them; their scoring code is theirs and is not here.

plain     00000.png, 00001.png ... and prompts.txt
geneval   00000/samples/0000.png ... and 00000/metadata.jsonl, a prompt a folder
hpsv2     00000.jpg ... (one folder a style: run it once for each style's prompts) and prompts.txt

Of --prompts FILE.jsonl each line is carried whole into metadata.jsonl ("tag" and "include" are what GenEval scores by):
geneval's has the folder's one line, the others' a line a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]  # "prompt" and whatever else a line of --prompts holds


class Layout(NamedTuple):
    """begin(folder, records, per_prompt), with a record a picture, writes what stands beside the pictures; path says
    where picture i goes."""

    begin: Callable[[Path, Sequence[Record], int], None]
    path: Callable[[Path, int, int], Path]


def _begin_plain(folder: Path, records: Sequence[Record], per_prompt: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("".join(f"{record['prompt']}\n" for record in records), encoding="utf-8")
    if any(len(record) > 1 for record in records):
        _write_records(folder, records)


def _begin_geneval(folder: Path, records: Sequence[Record], per_prompt: int) -> None:
    for number, record in enumerate(records[::per_prompt]):
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        _write_records(place, [record])


def _write_records(folder: Path, records: Sequence[Record]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


LAYOUTS = {
    "plain": Layout(_begin_plain, lambda folder, i, k: folder / f"{i:05d}.png"),
    "geneval": Layout(_begin_geneval, lambda folder, i, k: folder / f"{i // k:05d}" / "samples" / f"{i % k:04d}.png"),
    "hpsv2": Layout(_begin_plain, lambda folder, i, k: folder / f"{i:05d}.jpg"),
}
