"""The layouts of image folders that other tools expect. The scoring code is that of those tools and is not here.

plain     00000.png, 00001.png, ... and prompts.txt
geneval   00000/samples/0000.png, ... and 00000/metadata.jsonl: one folder for each prompt
hpsv2     00000.jpg, ... and prompts.txt: one folder for each style, so run the command once for each style's prompts

Each line of --prompts FILE.jsonl goes whole into metadata.jsonl, because GenEval scores by its "tag" and "include". In
geneval's layout that file has the folder's one line; in the others it has one line for each image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]  # "prompt", and whatever else a line of --prompts holds


class Layout(NamedTuple):
    """One layout.

    Attributes:
        begin: writes the files beside the images; takes the folder, one record for each image, and images per prompt.
        path: the path of an image; takes the folder, the image's index, and images per prompt.
    """

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
