"""One folder a checkpoint, written whole or not at all, safetensors and JSON only.

    checkpoint-0000012800/
      state.json            the format's number; the values of `state.TrainingState`; what the run is (`continuation`);
                            the size and the CRC of every group's file
      GROUP.safetensors     each group of tensors of `state.TrainingState`
      best.safetensors      the best weights up to then (`best`), where there are some; state.json does not name it

A checkpoint is made in a hidden folder, flushed to disk and renamed. A folder whose files do not agree with its
state.json (a torn copy, say) is passed over when the latest checkpoint is looked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from diffdistill.errors import UserError

FORMAT = 4
_NAME = re.compile(r"checkpoint-(\d+)$")


def write_folder_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a hidden sibling of `folder`, flush it and rename it; `folder` must not exist yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.parent / f".{folder.name}.{os.getpid()}.part"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        write(hidden)
        for file in hidden.rglob("*"):
            _flush(file)
        _flush(hidden)
        os.rename(hidden, folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def save_checkpoint(folder: Path, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
    """Write a checkpoint: groups of tensors, a file each, and plain values."""

    def write(hidden: Path) -> None:
        for name, group in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, hidden / f"{name}.safetensors")
        manifest = {f.name: [f.stat().st_size, _crc(f)] for f in sorted(hidden.iterdir())}
        (hidden / "state.json").write_text(json.dumps({"format": FORMAT, **values, "files": manifest}, indent=1))

    if folder.exists():  # a torn one of the same name: the loop never writes a whole one twice
        shutil.rmtree(folder)
    write_folder_atomically(folder, write)


def latest_checkpoint(run: Path) -> Path | None:
    """The whole checkpoint with most samples, or None."""
    return next((path for path in reversed(_folders(run)) if _state_if_whole(path) is not None), None)


def why_unreadable(folder: Path) -> str:
    """What is wrong with a checkpoint that is not whole, as the end of a sentence."""
    try:
        version = json.loads((folder / "state.json").read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    if version in range(1, FORMAT):
        return f"was written by an earlier version of diffdistill: it has format {version}, this one reads {FORMAT}"
    return "is not a whole checkpoint: torn, or of another version"


def stored_paths(run: Path, resume: str) -> tuple[dict[str, Any], Path]:
    """`Identity.paths` of the checkpoint that `resume` names, and the folder that this is in; reads its state alone."""
    named = _folders(run) if resume == "latest" else [Path(resume)]
    for folder in reversed(named):
        state = _state_if_whole(folder, check_bytes=False)
        if state is not None:
            return state["identity"]["paths"], folder.resolve().parent
    return {}, run


def later_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints of the same run that have more samples than `folder`; torn ones are among them."""
    folders = _folders(folder.parent)
    return [path.name for path in folders[folders.index(folder) + 1 :]] if folder in folders else []


def remove_later_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of the same run that have more samples: a continuation from `folder` gives them up."""
    for name in later_checkpoints(folder):
        shutil.rmtree(folder.parent / name, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Groups of tensors, and plain values.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    state = _state_if_whole(folder)
    if state is None:
        raise UserError(f"{folder} {why_unreadable(folder)}; name another one or `latest`")
    groups = {name[: -len(".safetensors")]: load_file(folder / name) for name in state["files"]}
    return groups, state


def remove_old_checkpoints(run: Path, keep: int) -> None:
    """Leave the `keep` newest whole checkpoints, and no folder that was half written."""
    whole = [path for path in _folders(run) if _state_if_whole(path, check_bytes=False) is not None]
    for path in set(_folders(run)) - set(whole[-keep:]):
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(".checkpoint-*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _folders(run: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in run.glob("checkpoint-*") if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(found)]


def _state_if_whole(folder: Path, check_bytes: bool = True) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / "state.json").read_text())
        whole = state["format"] == FORMAT and all(
            (folder / name).stat().st_size == size and (not check_bytes or _crc(folder / name) == crc)
            for name, (size, crc) in state["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if whole else None


def _crc(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
