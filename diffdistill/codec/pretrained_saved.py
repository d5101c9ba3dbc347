"""A codec with pretrained networks as a folder: its own weights, and either the pretrained ones or where they are.

    config.json          the shape; for each pretrained network its class's settings and, unless it is stored whole,
                         source, variant and digest
    codec.safetensors    as of `saved`: own parts and adapters, or own parts and both networks with the adapters merged

The fingerprint covers all weights that decoding depends on: those of the file by their bytes, and those that are named
by their digests, which loading checks. It does not cover sources, so `source` in config.json may be changed to where
the same network is now.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from diffdistill.errors import UserError

from .adapters import is_adapter, merged_weights
from .pretrained import PretrainedCodecNetwork
from .pretrained_settings import Origin, PretrainedSettings
from .pretrained_source import PARTS, open_recorded
from .saved import SavedCodec, check_shapes, damage_of, fill, read_file, read_shape, stored, write_folder

MOST_BYTES = 16 << 30
MOST_LAYERS = 256


def save_pretrained_codec(network: PretrainedCodecNetwork, folder: Path, whole: bool = False) -> None:
    """Write the codec into a folder, which may exist; each file is whole or not there.

    Args:
        network: the codec.
        folder: where to.
        whole: store both pretrained networks too, with the adapters merged, as float16 (1.8 GB at the real size).

    Raises:
        UserError: not `whole`, and it is not known where the pretrained networks came from.
    """
    settings, given = network.settings, dict[str, Any]()
    state = _without(network, tuple(PARTS))
    if whole:
        settings = dataclasses.replace(settings, autoencoder_rank=0, transformer_rank=0)
        state = {name: value for name, value in state.items() if not is_adapter(name)}
    for name in PARTS:
        part: Any = getattr(network, name)
        if whole:
            state |= {f"{name}.{key}": value for key, value in merged_weights(part).items()}
            given[name] = {"config": {k: v for k, v in part.config.items() if not k.startswith("_")}}
        elif name in network.origins:
            given[name] = dataclasses.asdict(network.origins[name])
        else:
            raise UserError(f"it is not known where the {name} came from; save the codec whole")
    config = {"pretrained": given, "settings": dataclasses.asdict(settings)}
    write_folder(folder, config, stored(state, network.latent_codec))


def load_pretrained_codec(folder: str | Path) -> SavedCodec[PretrainedCodecNetwork]:
    """Read a codec that `save_pretrained_codec` wrote, and the networks that it names.

    Raises:
        UserError: a file is missing or damaged or of another format, or a named network is not there or is another one.
    """
    folder = Path(folder)
    config, data = read_file(folder / "config.json"), read_file(folder / "codec.safetensors", MOST_BYTES)
    with damage_of(folder):
        shape = read_shape(config, folder)
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in shape["settings"].items()}
        settings = PretrainedSettings(**given)
        origins = {name: Origin(**part) for name, part in shape["pretrained"].items() if "digest" in part}
        recorded = {name: open_recorded(name, origin) for name, origin in origins.items()}
        state = load(data)
        _check_shapes(shape, settings, recorded, state)
        parts = {name: recorded[name] if name in recorded else _empty(name, shape) for name in PARTS}
        network = PretrainedCodecNetwork(parts["autoencoder"], parts["transformer"], settings, origins)
        own = _without(network, tuple(origins))
        state |= {name: value for name, value in network.state_dict().items() if name not in own}
        z, r_tables = fill(network, state, network.latent_codec, (settings.levels, settings.hyper))
    for part in shape["pretrained"].values():
        for name in ("source", "variant"):
            part.pop(name, None)
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode() + data).hexdigest()
    return SavedCodec(network, z, r_tables, digest)


def _without(network: PretrainedCodecNetwork, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights of the codec but for those of some pretrained networks; adapters stay."""
    starts = tuple(f"{name}." for name in parts)
    return {k: v for k, v in network.state_dict().items() if not k.startswith(starts) or is_adapter(k)}


def _check_shapes(
    shape: dict[str, Any], settings: PretrainedSettings, recorded: dict[str, Any], state: dict[str, Tensor]
) -> None:
    """Raise ValueError unless all stored tensors have the shapes of the settings; new networks take no memory here."""
    with torch.device("meta"):
        autoencoder, transformer = (
            _network(name, recorded[name].config if name in recorded else shape["pretrained"][name]["config"])
            for name in PARTS
        )
        made = PretrainedCodecNetwork(autoencoder, transformer, settings)
    check_shapes(_without(made, tuple(recorded)), state)


def _empty(name: str, shape: dict[str, Any]) -> Any:
    """A network of recorded settings, whose weights are to be filled."""
    return _network(name, shape["pretrained"][name]["config"]).to(torch.float32)


def _network(name: str, config: Mapping[str, Any]) -> Any:
    """A network of diffusers with random weights.

    Raises:
        ValueError: the settings ask for more layers than any network of its class has.
    """
    import diffusers

    if any(_largest(value) > MOST_LAYERS for key, value in config.items() if "layers" in key):
        raise ValueError(f"the {name} is said to have more than {MOST_LAYERS} layers")
    (wanted,) = PARTS[name][1].classes
    cls: Any = getattr(diffusers, wanted)
    return cls.from_config(dict(config))


def _largest(value: Any) -> int:
    return max(map(_largest, value), default=0) if isinstance(value, (list, tuple)) else int(value or 0)
