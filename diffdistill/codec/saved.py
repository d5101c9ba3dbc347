"""A codec as a folder: `config.json` with its shape, and `codec.safetensors` with weights and tables.

Networks are stored as float16. What files depend on is stored as integers and never computed again: the scale network
and the tables of probabilities. The fingerprint, of which each file holds four bytes, covers all of it.

A codec with pretrained networks is such a folder too (`pretrained_saved`), and `open_codec` reads either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from diffdistill.errors import UserError
from diffdistill.files import write_atomic

from .lapped import BLOCK
from .latent_codec import LatentCodec
from .network import CodecNetwork, CodecSettings, trained_parts
from .one_step import DenoiserSettings
from .scales import FIRST_BIAS_UNIT, SCALES, SECOND_UNIT, WEIGHT_UNIT, Z_MOST
from .tables import gaussian_tables, hyper_tables

if TYPE_CHECKING:
    from .pretrained import PretrainedCodecNetwork

FORMAT, FORMAT_WITH_DENOISER = 1, 2  # denoisers of format 1 took another step, and would make other images
_UNITS = {
    "first": WEIGHT_UNIT,
    "first_bias": FIRST_BIAS_UNIT,
    "second": WEIGHT_UNIT,
    "second_bias": SECOND_UNIT,
    "offset": 1,
}
TRANSFORM = 3 * BLOCK**2  # channels of the whole transform
_NARROW = ("first", "second", "offset")  # fit 8 bits
_MOST_BYTES = 1 << 30
_SCALES, _PRIOR = "latent_codec.scales.", "latent_codec.prior."
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class SavedCodec(Generic[Network]):
    """A codec that was read.

    Attributes:
        network: its networks, in float32.
        z_tables: (L, Z, 255) integers.
        r_tables: 64 arrays of integers.
        fingerprint: SHA-256 of its files, 64 hex digits.
    """

    network: Network
    z_tables: np.ndarray
    r_tables: list[np.ndarray]
    fingerprint: str


def save_codec(network: CodecNetwork, folder: Path) -> None:
    """Write the codec into a folder, which may exist; each file is whole or not there."""
    write_folder(folder, dataclasses.asdict(network.settings), stored(network.state_dict(), network.latent_codec))


def stored(state: Mapping[str, Tensor], latent_codec: LatentCodec) -> dict[str, Tensor]:
    """The tensors that a folder holds: networks as float16, and integers and tables of the entropy model."""
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu()
        if not name.startswith(_SCALES):
            whole = name.startswith(_PRIOR) or not value.is_floating_point()
            kept[name] = (value if whole else value.half()).contiguous()
    for name, value in latent_codec.scales.integers().items():
        kept[_SCALES + name] = value.detach().cpu().to(torch.int8 if name in _NARROW else torch.int32).contiguous()
    kept["tables.z"] = hyper_tables(latent_codec.prior)
    tables = gaussian_tables()
    kept["tables.r"] = torch.from_numpy(np.concatenate(tables)).to(torch.int32)
    kept["tables.r_lengths"] = torch.tensor([len(table) for table in tables], dtype=torch.int32)
    return kept


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write `config.json` and `codec.safetensors` of a codec."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "codec.safetensors", save(tensors))
    write_atomic(folder / "config.json", (json.dumps({"format": _format(config), **config}, indent=2) + "\n").encode())


def open_codec(folder: str | Path) -> SavedCodec[CodecNetwork] | SavedCodec[PretrainedCodecNetwork]:
    """Read a codec of either kind.

    Raises:
        UserError: as `load_codec`, or as `pretrained_saved.load_pretrained_codec`.
    """
    folder = Path(folder)
    with usual_defaults():
        if not is_pretrained(folder):
            return load_codec(folder)
        from .pretrained_saved import load_pretrained_codec

        return load_pretrained_codec(folder)


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Within the block, new tensors are float32 and on the CPU, whatever the caller has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def is_pretrained(folder: Path) -> bool:
    """Whether the codec in a folder has pretrained networks; False where its config cannot be read."""
    try:
        return "pretrained" in json.loads(read_file(folder / "config.json"))
    except (RecursionError, TypeError, ValueError):
        return False


def load_codec(folder: str | Path) -> SavedCodec[CodecNetwork]:
    """Read a codec that `save_codec` wrote.

    Raises:
        UserError: a file is missing or damaged, of another format or kind, or does not fit its shape.
    """
    folder = Path(folder)
    config, data = read_file(folder / "config.json"), read_file(folder / "codec.safetensors")
    with damage_of(folder):
        shape = read_shape(config, folder)
        if "pretrained" in shape:
            raise UserError(f"the codec at {folder} has pretrained networks, and one without is wanted here")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}
        if given.get("denoiser") is not None:
            given["denoiser"] = DenoiserSettings(**given["denoiser"])
        settings = CodecSettings(**given)
        state = load(data)
        channels = state["lapped.channels"]
        if channels.shape != (settings.channels,) or not bool(((channels >= 0) & (channels < TRANSFORM)).all()):
            raise ValueError(f"its transform has channels of shape {tuple(channels.shape)}, or numbers out of range")
        _check_shapes(settings, state)
        network = CodecNetwork(settings, channels.tolist(), torch.ones(settings.channels))
        z, r_tables = fill(network, state, network.latent_codec, (settings.levels, settings.hyper))
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode() + data).hexdigest()
        return SavedCodec(network.to(memory_format=torch.channels_last), z, r_tables, digest)  # type: ignore[call-overload]


def _check_shapes(settings: CodecSettings, state: dict[str, Tensor]) -> None:
    """Raise ValueError unless all tensors have the shapes of the settings; the network itself takes no memory here."""
    with torch.device("meta"):
        made = trained_parts(settings, torch.ones(settings.channels), torch.ones(settings.levels))
    check_shapes(nn.ModuleDict(made).state_dict(), state)


def check_shapes(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless stored tensors are there in the shapes that are wanted."""
    for name, value in wanted.items():
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise ValueError(f"{name} is {found}; config.json asks for {tuple(value.shape)}")


@contextmanager
def damage_of(folder: Path) -> Iterator[None]:
    """Within the block, errors of files that do not fit become one line that says that the codec is damaged."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        SafetensorError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"the codec at {folder} is damaged: {str(error).splitlines()[0]}") from error


def read_shape(config: bytes, folder: Path) -> dict[str, Any]:
    """What `config.json` says, without its format.

    Raises:
        UserError: it is of another format.
    """
    shape: dict[str, Any] = json.loads(config)
    if (found := shape.pop("format")) != (wanted := _format(shape)):
        raise UserError(
            f"the codec at {folder} is of format {found}; this program reads format {wanted} of such codecs"
        )
    return shape


def _format(shape: Mapping[str, Any]) -> int:
    """The format of a codec of a shape."""
    return FORMAT_WITH_DENOISER if shape.get("denoiser") else FORMAT


def fill(
    network: nn.Module, state: dict[str, Tensor], latent_codec: LatentCodec, z_shape: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Give a network the stored tensors, freeze it, and return the tables of z and r.

    Args:
        network: float32.
        state: what `stored` made; it is emptied of tables.
        latent_codec: the part of the network.
        z_shape: levels and channels of the tables of z.

    Raises:
        ValueError: tables or integers are out of range, or weights are missing.
    """
    z, flat, lengths = (state.pop(f"tables.{name}") for name in ("z", "r", "r_lengths"))
    for name, unit in _UNITS.items():
        if state[_SCALES + name].dtype != (torch.int8 if name in _NARROW else torch.int32):
            raise ValueError(f"the integers {_SCALES}{name} are stored as {state[_SCALES + name].dtype}")
        state[_SCALES + name] = state[_SCALES + name].float() / unit
    floats = {name: v.float() if v.is_floating_point() else v for name, v in state.items()}
    for name, value in floats.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has values that are not finite")
    network.load_state_dict(floats)
    r_tables = np.split(flat.numpy(), np.cumsum(lengths.numpy())[:-1])
    _check_tables(z.numpy(), r_tables, z_shape, latent_codec)
    network.eval().requires_grad_(False)
    return z.numpy(), r_tables


def _check_tables(
    z: np.ndarray, r_tables: list[np.ndarray], z_shape: tuple[int, int], latent_codec: LatentCodec
) -> None:
    """Raise ValueError where tables have another shape or sum, or the scale network's integers are out of range."""
    if z.shape != (*z_shape, 2 * Z_MOST + 1):
        raise ValueError(f"its tables of z have the shape {z.shape}")
    if len(r_tables) != SCALES or any(len(table) % 2 or len(table) < 4 for table in r_tables):
        raise ValueError(f"it has {len(r_tables)} tables of r, or one of an odd length; there are {SCALES}")
    flat = [*z.reshape(-1, z.shape[-1]), *r_tables]
    if any(int(table.sum()) != 1 << 16 or int(table.min()) < 1 for table in flat):
        raise ValueError("a table does not sum to 65,536")
    scales = latent_codec.scales
    if any(float(bias.detach().abs().max()) * unit > 1 << 20 for bias, unit in (
        (scales.first_bias, FIRST_BIAS_UNIT), (scales.second_bias, SECOND_UNIT)
    )):  # fmt: skip
        raise ValueError("a bias of its scale network is above 2^20")
    if any(float((value.detach() * unit).abs().max()) > most for value, unit, most in (
        (scales.first, WEIGHT_UNIT, 127), (scales.second, WEIGHT_UNIT, 127), (scales.offset, 1, SCALES)
    )):  # fmt: skip
        raise ValueError("a weight of its scale network is beyond 127, or an offset beyond 64")


def read_file(file: Path, most: int = _MOST_BYTES) -> bytes:
    """The bytes of a file of a codec.

    Raises:
        UserError: it is missing, larger than `most` bytes, or cannot be read.
    """
    try:
        if not file.is_file():
            raise UserError(f"there is no codec at {file.parent}: {file.name} is missing")
        if file.stat().st_size > most:
            raise UserError(f"{file} is larger than {most >> 20} MiB")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
