"""A codec as a folder: `config.json` with its shape, and `codec.safetensors` with weights and tables.

Networks are stored as float16. What files depend on is stored as integers and never computed again: the scale network
and the tables of probabilities. The fingerprint, of which each file holds four bytes, covers all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffdistill.errors import UserError
from diffdistill.files import write_atomic

from .network import CodecNetwork, CodecSettings
from .one_step import DenoiserSettings
from .scales import FIRST_BIAS_UNIT, SCALES, SECOND_UNIT, WEIGHT_UNIT, Z_MOST
from .tables import gaussian_tables, hyper_tables

FORMAT = 1
_UNITS = {
    "first": WEIGHT_UNIT,
    "first_bias": FIRST_BIAS_UNIT,
    "second": WEIGHT_UNIT,
    "second_bias": SECOND_UNIT,
    "offset": 1,
}
_NARROW = ("first", "second", "offset")  # fit 8 bits
_MOST_BYTES = 1 << 30
_SCALES, _PRIOR = "latent_codec.scales.", "latent_codec.prior."


@dataclass(frozen=True)
class SavedCodec:
    """A codec that was read.

    Attributes:
        network: its networks, in float32.
        z_tables: (L, Z, 255) integers.
        r_tables: 64 arrays of integers.
        fingerprint: SHA-256 of its files, 64 hex digits.
    """

    network: CodecNetwork
    z_tables: np.ndarray
    r_tables: list[np.ndarray]
    fingerprint: str


def save_codec(network: CodecNetwork, folder: Path) -> None:
    """Write the codec into a folder, which may exist; each file is whole or not there."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith(_SCALES):
            whole = name.startswith(_PRIOR) or not value.is_floating_point()
            kept[name] = (value if whole else value.half()).contiguous()
    for name, value in network.latent_codec.scales.integers().items():
        kept[_SCALES + name] = value.detach().cpu().to(torch.int8 if name in _NARROW else torch.int32).contiguous()
    kept["tables.z"] = hyper_tables(network.latent_codec.prior)
    tables = gaussian_tables()
    kept["tables.r"] = torch.from_numpy(np.concatenate(tables)).to(torch.int32)
    kept["tables.r_lengths"] = torch.tensor([len(table) for table in tables], dtype=torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, **dataclasses.asdict(network.settings)}
    write_atomic(folder / "codec.safetensors", save(kept))
    write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def load_codec(folder: str | Path) -> SavedCodec:
    """Read a codec that `save_codec` wrote.

    Raises:
        UserError: a file is missing or damaged, of another format, or does not fit its shape.
    """
    folder = Path(folder)
    config, data = _read(folder / "config.json"), _read(folder / "codec.safetensors")
    try:
        shape: dict[str, Any] = json.loads(config)
        if shape.pop("format") != FORMAT:
            raise UserError(f"the codec at {folder} is of another format than {FORMAT}")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}
        if given.get("denoiser") is not None:
            given["denoiser"] = DenoiserSettings(**given["denoiser"])
        settings = CodecSettings(**given)
        state = load(data)
        z, flat, lengths = (state.pop(f"tables.{name}") for name in ("z", "r", "r_lengths"))
        network = CodecNetwork(settings, state["lapped.channels"].tolist(), torch.ones(settings.channels))
        for name, unit in _UNITS.items():
            state[_SCALES + name] = state[_SCALES + name].float() / unit
        network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
        r_tables = np.split(flat.numpy(), np.cumsum(lengths.numpy())[:-1])
        _check_tables(z.numpy(), r_tables, settings, network)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"the codec at {folder} is damaged: {str(error).splitlines()[0]}") from error
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode() + data).hexdigest()
    network.eval().requires_grad_(False)
    return SavedCodec(network.to(memory_format=torch.channels_last), z.numpy(), r_tables, digest)  # type: ignore[call-overload]


def _check_tables(z: np.ndarray, r_tables: list[np.ndarray], settings: CodecSettings, network: CodecNetwork) -> None:
    """Raise ValueError where tables have another shape or sum, or the scale network's integers are out of range."""
    if z.shape != (settings.levels, settings.hyper, 2 * Z_MOST + 1):
        raise ValueError(f"its tables of z have the shape {z.shape}")
    if len(r_tables) != SCALES or any(len(table) % 2 or len(table) < 4 for table in r_tables):
        raise ValueError(f"it has {len(r_tables)} tables of r, or one of an odd length; there are {SCALES}")
    flat = [*z.reshape(-1, z.shape[-1]), *r_tables]
    if any(int(table.sum()) != 1 << 16 or int(table.min()) < 1 for table in flat):
        raise ValueError("a table does not sum to 65,536")
    scales = network.latent_codec.scales
    if any(float(bias.detach().abs().max()) * unit > 1 << 20 for bias, unit in (
        (scales.first_bias, FIRST_BIAS_UNIT), (scales.second_bias, SECOND_UNIT)
    )):  # fmt: skip
        raise ValueError("a bias of its scale network is above 2^20")


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise UserError(f"there is no codec at {file.parent}: {file.name} is missing")
    if file.stat().st_size > _MOST_BYTES:
        raise UserError(f"{file} is larger than {_MOST_BYTES >> 20} MiB")
    return file.read_bytes()
