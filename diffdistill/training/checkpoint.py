"""One folder a checkpoint, written whole or not at all, safetensors and JSON only.

    checkpoint-0000012800/
      state.json                   samples, step, averages' and optimisers' counters, what the run is
                                   (`continuation.Identity`), and the size and CRC of every other file
      NAME.safetensors             trainable weights of each network
      NAME.optimizer.safetensors   the optimiser's tensors, keyed "moment/parameter"
      ema.safetensors              the moving average
      rng-RANK.safetensors         each process's generator states

A checkpoint is made in a hidden folder, flushed to disk and renamed; a folder of that form that does not agree with
its state.json (a torn copy, say) is passed over when the latest one is looked for.
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

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffdistill.errors import UserError

FORMAT = 3
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


def save_checkpoint(
    folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], files: dict[str, bytes] | None = None
) -> None:
    """Write a checkpoint: groups of tensors (one file each), the state, and ready-made files beside them."""

    def write(hidden: Path) -> None:
        for name, group in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, hidden / f"{name}.safetensors")
        for name, content in (files or {}).items():
            (hidden / name).write_bytes(content)
        manifest = {f.name: [f.stat().st_size, _crc(f)] for f in sorted(hidden.iterdir())}
        (hidden / "state.json").write_text(json.dumps({"format": FORMAT, **state, "files": manifest}, indent=1))

    if folder.exists():  # a torn one of the same name; the loop never writes a whole one twice
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
        return (
            f"was written by an earlier version of diffdistill (format {version}, this one reads {FORMAT}), which kept "
            "a hash in place of the settings, and cannot be compared with this run"
        )
    return "is not a whole checkpoint: torn, or of another version"


def stored_paths(run: Path, resume: str) -> tuple[dict[str, Any], Path]:
    """`Identity.paths` of the checkpoint that `resume` names, by its state alone, and the folder that it is in."""
    named = _folders(run) if resume == "latest" else [Path(resume)]
    for folder in reversed(named):
        state = _state_if_whole(folder, check_bytes=False)
        if state is not None:
            return state["identity"]["paths"], folder.resolve().parent
    return {}, run


def later_checkpoints(folder: Path) -> list[str]:
    """The names of those of the same run that have more samples than `folder`, torn ones too."""
    folders = _folders(folder.parent)
    return [path.name for path in folders[folders.index(folder) + 1 :]] if folder in folders else []


def remove_later_checkpoints(folder: Path) -> None:
    """Remove those of the same run that have more samples: a branch that a continuation from `folder` gives up."""
    for name in later_checkpoints(folder):
        shutil.rmtree(folder.parent / name, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Groups of tensors and state.

    Raises:
        UserError: not a whole checkpoint.
    """
    state = _state_if_whole(folder)
    if state is None:
        raise UserError(f"{folder} {why_unreadable(folder)}; name another one or `latest`")
    groups = {name[: -len(".safetensors")]: load_file(folder / name) for name in state["files"]}
    return groups, state


def remove_old_checkpoints(run: Path, keep: int) -> None:
    """Leave the `keep` newest whole ones, and no folder that was half written."""
    whole = [path for path in _folders(run) if _state_if_whole(path, check_bytes=False) is not None]
    for path in set(_folders(run)) - set(whole[-keep:]):
        shutil.rmtree(path, ignore_errors=True)
    for path in run.glob(".checkpoint-*.part"):
        shutil.rmtree(path, ignore_errors=True)


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that require a gradient, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = trainable_tensors(module)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise UserError(f"the checkpoint does not fit this network: {len(odd)} names differ, {odd[0]} for one")
    for name, p in own.items():
        p.copy_(tensors[name])


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state keyed "moment/parameter name"; empty before the first step."""
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    return {f"{key}/{names[p]}": value for p, state in optimizer.state.items() for key, value in state.items()}


def load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        moment, name = key.split("/", 1)
        p = parameters[name]
        # the fused optimiser wants its step counter where the parameter is
        like = value.to(p.device, torch.float32) if moment == "step" else torch.empty_like(p).copy_(value)
        optimizer.state[p][moment] = like


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
