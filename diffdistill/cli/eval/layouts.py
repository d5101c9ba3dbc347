"""Folders of pictures as other tools expect them; their scoring code is theirs and is not here.

plain     00000.png, 00001.png ... and prompts.txt
geneval   00000/samples/0000.png ... and 00000/metadata.jsonl, a prompt a folder
hpsv2     00000.jpg ... (one folder a style: run it once for each style's prompts) and prompts.txt
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """begin(folder, source, per_prompt) writes what stands beside the pictures; path says where picture i goes."""

    begin: Callable[[Path, Any, int], None]
    path: Callable[[Path, int, int], Path]


def _begin_plain(folder: Path, source: Any, per_prompt: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("".join(f"{source.prompt(i)}\n" for i in range(len(source))), encoding="utf-8")


def _begin_geneval(folder: Path, source: Any, per_prompt: int) -> None:
    for first in range(0, len(source), per_prompt):
        place = folder / f"{first // per_prompt:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / "metadata.jsonl").write_text(json.dumps({"prompt": source.prompt(first)}) + "\n", encoding="utf-8")


LAYOUTS = {
    "plain": Layout(_begin_plain, lambda folder, i, k: folder / f"{i:05d}.png"),
    "geneval": Layout(_begin_geneval, lambda folder, i, k: folder / f"{i // k:05d}" / "samples" / f"{i % k:04d}.png"),
    "hpsv2": Layout(_begin_plain, lambda folder, i, k: folder / f"{i:05d}.jpg"),
}
