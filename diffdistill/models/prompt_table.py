"""The conditions of a list of prompts: they are embedded once, and training takes rows of them.

    prompts --teacher.embed, in batches--> a table, in memory or in the user's cache --rows--> condition of B prompts

Each process keeps a small table on its device. A larger table is a file, `prompts-HASH.safetensors`. The first process
of a machine writes it while the others wait. The file is complete or absent, and all processes map it into memory, so
that only the rows that are asked for are read. The hash covers the text encoders, the tokenizers, the prompts and the
type of device.
Once there is a table, the text encoders can leave the device (`Teacher.move_text_encoders`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdistill.diffusion.condition import Condition, move, take_rows
from diffdistill.errors import UserError
from diffdistill.files import user_cache
from diffdistill.launched import rank_and_processes

from .digests import pipeline_settings, weights_digest
from .teacher import Teacher

IN_MEMORY = 64 << 20  # most bytes of a table that has no file
BATCH = 64  # number of prompts that the text encoders read at once
WHOLE = "whole"  # key of a condition that is a bare tensor
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}


class PromptTable:
    """Conditions of N prompts.

    Args:
        cond: condition of N rows, on the CPU or on the device; all prompts share parts that have one row.
        size: number of prompts, N.
        device: the device of the rows that `rows` returns.

    Attributes:
        on_demand: whether rows still need the text encoders.
    """

    on_demand = False

    def __init__(self, cond: Condition, size: int, device: torch.device | str) -> None:
        self._cond, self._size, self._device = cond, size, torch.device(device)

    def __len__(self) -> int:
        return self._size

    def rows(self, indices: Sequence[int]) -> Condition:
        """The condition of some prompts, one row for each, on the device."""
        return move(take_rows(self._cond, list(indices)), self._device)


class PromptsOnDemand(PromptTable):
    """Conditions of N prompts that are embedded each time they are asked for, so the text encoders must stay.

    Args:
        teacher: the teacher, whose text encoders embed.
        prompts: N texts.
        device: the device of the rows that `rows` returns.
    """

    on_demand = True

    def __init__(self, teacher: Teacher, prompts: Sequence[str], device: torch.device | str) -> None:
        super().__init__(None, len(prompts), device)
        self._teacher, self._prompts = teacher, list(prompts)

    def rows(self, indices: Sequence[int]) -> Condition:
        """The condition of some prompts, on the device."""
        return move(self._teacher.embed([self._prompts[i] for i in indices], BATCH), self._device)


def embed_prompts(teacher: Teacher, prompts: Sequence[str], device: torch.device | str) -> PromptTable:
    """Embed prompts with a teacher that is on the device already.

    Args:
        teacher: the teacher, whose text encoders embed.
        prompts: N texts, at least one.
        device: the device of the rows.

    Raises:
        UserError: the file of a large table cannot be written.
    """
    if table_bytes(teacher, len(prompts)) <= IN_MEMORY:
        return PromptTable(move(teacher.embed(prompts, BATCH), device), len(prompts), device)
    file = user_cache() / f"prompts-{_key(teacher, prompts, device)}.safetensors"
    if not file.exists() and (bytes_ := table_bytes(teacher, len(prompts))) > _room(file.parent):
        if rank_and_processes()[0] == 0:
            print(
                f"note: the embeddings of {len(prompts)} prompts would take {bytes_ / 2**30:.1f} GiB in {file.parent}, "
                "more than half of what is free there, so they are made again for every batch; DIFFDISTILL_CACHE names "
                "another folder",
                file=sys.stderr,
                flush=True,
            )
        return PromptsOnDemand(teacher, prompts, device)
    first = int(os.environ.get("LOCAL_RANK") or rank_and_processes()[0]) == 0 or rank_and_processes()[1] == 1
    two = _parts(teacher.family.embed(teacher.pipeline, ["", ""]))
    shared = {name for name, part in two.items() if len(part) == 1}  # one row for any number of prompts
    rows = {name: 1 if name in shared else len(prompts) for name in two}
    while (found := _read(file, rows)) is None:
        if first:
            _write(file, teacher, prompts, shared)
            if _read(file, rows) is None:
                raise UserError(f"{file} was written and cannot be read; set DIFFDISTILL_CACHE to another folder")
        else:
            time.sleep(0.2)  # a barrier would time out after minutes
    return PromptTable(found, len(prompts), device)


def _room(folder: Path) -> int:
    """Half of the bytes that are free where the folder is or would be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free // 2


def table_bytes(teacher: Teacher, size: int) -> int:
    """Number of bytes of the conditions of so many prompts."""
    return size * sum(part.nbytes for part in _parts(teacher.null()).values())


def _key(teacher: Teacher, prompts: Sequence[str], device: torch.device | str) -> str:
    """Hash of everything that the embeddings depend on."""
    settings = pipeline_settings(teacher.family, teacher.pipeline)
    encoders = teacher.text_encoders()
    unread = set(teacher.parts()) - set(encoders)
    words = {name: value for name, value in settings.items() if name not in unread}
    made_from = [
        teacher.family.pipeline_class,
        # sizes are a part of some conditions
        [teacher.latent_shape, teacher.latents.factor, dict(teacher.pipeline.config)],
        words,
        {name: weights_digest(part) for name, part in encoders.items()},
        torch.device(device).type,
        list(prompts),
    ]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _read(file: Path, rows: Mapping[str, int]) -> Condition | None:
    """The table in a file, mapped into memory; None if the file is absent or damaged, or its parts have other rows."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            parts = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            parts = {name: part.clone() if part.dim() and len(part) == 1 else part for name, part in parts.items()}
            absent = json.loads((opened.metadata() or {}).get("absent", "[]"))
    except (OSError, SafetensorError):
        return None
    if {name: len(part) if part.dim() else 0 for name, part in parts.items()} != rows:
        return None
    return parts[WHOLE] if WHOLE in parts else {**parts, **dict.fromkeys(absent)}


def _write(file: Path, teacher: Teacher, prompts: Sequence[str], shared: set[str]) -> None:
    """Embed in batches into a file that appears when it is complete; memory holds one batch at a time."""
    from tqdm import tqdm

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as out, tqdm(total=len(prompts), desc="prompts", unit="prompt") as bar:
            places: dict[str, int] = {}
            for i in range(0, len(prompts), BATCH):
                chunk = prompts[i : i + BATCH]
                cond = teacher.embed(chunk, BATCH)
                parts = _parts(cond)
                if not places:
                    header, places = _header(parts, shared, len(prompts), cond)
                    out.write(header)
                for name, part in parts.items():
                    out.seek(places[name] + (0 if name in shared else i * part[0].nbytes))
                    out.write(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                bar.update(len(chunk))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as error:
        size = table_bytes(teacher, len(prompts)) / 2**30
        raise UserError(
            f"the embeddings of {len(prompts)} prompts, {size:.1f} GiB, cannot be written to {file.parent}: {error}; "
            "set DIFFDISTILL_CACHE to a folder with room"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _header(parts: Mapping[str, Tensor], shared: set[str], size: int, cond: Condition) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and the place in the file where the data of each part begin."""
    absent = [name for name, part in cond.items() if part is None] if isinstance(cond, Mapping) else []
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "absent": json.dumps(absent)}}
    end, places = 0, {}
    # a tensor starts at a multiple of its element's size if wider types come first
    for name, part in sorted(parts.items(), key=lambda item: -item[1].element_size()):
        rows = 1 if name in shared else size
        start, end = end, end + rows * part[0].nbytes
        header[name] = {"dtype": DTYPES[part.dtype], "shape": [rows, *part.shape[1:]], "data_offsets": [start, end]}
        places[name] = start
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + start for name, start in places.items()}


def _parts(cond: Condition) -> dict[str, Tensor]:
    """The tensors of a condition by name."""
    if cond is None:
        return {}
    if isinstance(cond, Tensor):
        return {WHOLE: cond}
    return {name: part for name, part in cond.items() if part is not None}
