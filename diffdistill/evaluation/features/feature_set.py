"""The base of feature sets: a protocol, a file, and processes that share the work.

Notable:
- each set carries the protocol that it was measured under, and sets of different protocols cannot be compared;
- a file is safetensors with a JSON record, written in one rename; it holds no pickle;
- a file is not trusted: record, names, shapes, dtypes and values are checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffdistill import __version__
from diffdistill.errors import UserError
from diffdistill.files import write_atomic

FORMAT = 1
_RECORD = "diffdistill"  # the key of the JSON record in a file's metadata


class FeatureSet:
    """A set of features under one protocol; `FeatureRows` keeps every row and `FeatureStatistics` keeps moments.

    Attributes:
        d: size of a feature.
        n: number of rows.
        protocol: what a number made from these features has to carry, as JSON values.
        source: where the images came from, for messages and reports.
    """

    kind: ClassVar[str]
    n: int

    def __init__(self, d: int, protocol: Mapping[str, Any] | None = None, source: str = "") -> None:
        if d < 1:
            raise ValueError(f"d should be at least 1, got {d}")
        try:
            self.protocol: dict[str, Any] = json.loads(json.dumps(dict(protocol or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"a protocol should hold only JSON values: {error}") from error
        self.d = d
        self.source = source

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={self.n}, d={self.d}, source={self.source!r}, protocol={self.protocol})"

    def _check(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.d:
            raise ValueError(f"features should have shape (N, {self.d}), got {tuple(features.shape)}")
        if not features.is_floating_point():
            raise ValueError(f"features should be floating point, got {features.dtype}")
        if not bool(features.isfinite().all()):
            rows = (~features.isfinite()).any(1).nonzero().flatten().tolist()
            raise ValueError(f"features hold values that are not finite, in {len(rows)} rows, the first {rows[0]}")

    def _need(self, rows: int) -> None:
        if self.n < rows:
            raise ValueError(f"needs at least {rows} rows of features, got {self.n}")

    def _check_mergeable(self, other: FeatureSet) -> None:
        require_same_protocol(self, other)
        if other.d != self.d:
            raise ValueError(f"features should have size {self.d}, got {other.d}")

    def _counts(self, flag: bool) -> tuple[list[int], list[bool]]:
        """Each process's number of rows and its flag; one entry without torch.distributed."""
        if not (dist.is_available() and dist.is_initialized()):
            return [self.n], [flag]
        canonical = json.dumps(self.protocol, sort_keys=True).encode()
        digest = int.from_bytes(hashlib.sha256(canonical).digest()[:8], "big", signed=True)
        mine = torch.tensor([self.n, int(flag), self.d, digest], device=collective_device())
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, mine)
        table = torch.stack(everyones).cpu()
        if bool((table[:, 2:] != table[0, 2:]).any()):
            sizes = table[:, 2].tolist()
            raise UserError(f"the processes measure under different protocols, or sizes, which are {sizes}")
        return table[:, 0].tolist(), table[:, 1].bool().tolist()

    def _gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Rows of all processes: the first of each, then the second of each, and so on."""
        device = collective_device()
        padded = torch.zeros(max(counts), self.d, dtype=rows.dtype, device=device)
        padded[: len(rows)] = rows
        everyones = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyones, padded)
        there = torch.arange(max(counts))[:, None] < torch.tensor(counts)
        return torch.stack(everyones, dim=1)[there.to(device)].to(rows.device)

    def _write(self, path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        self._need(1)
        record = {
            "kind": self.kind,
            "format": FORMAT,
            "n": self.n,
            "d": self.d,
            "protocol": self.protocol,
            "source": self.source,
            "version": __version__,
        }
        data = save({k: v.cpu().contiguous() for k, v in tensors.items()}, {_RECORD: json.dumps(record)})
        write_atomic(path, data)

    @classmethod
    def _read(cls, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The record and the tensors of a file, with names, shapes, dtypes and values checked."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"there is no file {path}; `diffdistill eval ref` writes one")
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[_RECORD])
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            kind, version, n, d = record["kind"], record["format"], record["n"], record["d"]
            protocol, source = record["protocol"], record["source"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a file of feature {cls.kind} ({type(error).__name__}: {error})") from error
        if kind != cls.kind or version != FORMAT:
            raise UserError(f"{path} holds {kind} of format {version}, should be {cls.kind} of format {FORMAT}")
        numbers = isinstance(n, int) and isinstance(d, int) and n >= 1 and d >= 1
        if not (numbers and isinstance(protocol, dict) and isinstance(source, str)):
            raise UserError(f"{path} is damaged: its record has n {n!r}, d {d!r}, protocol {protocol!r}")
        expected = {"rows": (n, d)} if "rows" in tensors or kind == "rows" else {"mean": (d,), "scatter": (d, d)}
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != expected:
            raise UserError(f"{path} is damaged: it holds {shapes}, should hold {expected}")
        for name, value in tensors.items():
            if value.dtype not in (torch.float64, torch.float32):
                raise UserError(f"{path} is damaged: {name} is {value.dtype}, should be float32 or float64")
            if not bool(value.isfinite().all()):
                raise UserError(f"{path} is damaged: {name} holds values that are not finite")
        return record, tensors


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The kind of features in a file, by its record; None where there is no record that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kind = json.loads((file.metadata() or {})[_RECORD])["kind"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return kind if isinstance(kind, str) else None


def require_same_protocol(a: FeatureSet, b: FeatureSet) -> None:
    """Refuse to compare features that were made differently.

    Raises:
        UserError: the protocols differ; each key that differs is named, with both values.
    """
    ours, theirs = _flat(a.protocol), _flat(b.protocol)
    differing = [key for key in sorted({*ours, *theirs}) if ours.get(key, _ABSENT) != theirs.get(key, _ABSENT)]
    if differing:
        values = "; ".join(f"{key} is {ours.get(key, _ABSENT)} and {theirs.get(key, _ABSENT)}" for key in differing)
        names = f"{a.source or 'the first'} and {b.source or 'the second'}"
        raise UserError(f"{names} were measured under different protocols and do not compare: {values}")


_ABSENT = "absent"


def _flat(protocol: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and the JSON text of their values."""
    flat: dict[str, str] = {}
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat


def collective_device() -> torch.device:
    """The device whose tensors a collective can move; NCCL moves only those of a GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
