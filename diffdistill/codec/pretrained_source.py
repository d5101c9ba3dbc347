"""Finds the pretrained networks of a codec: in the folder of a pipeline, in one of their own, or on the hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdistill.errors import UserError
from diffdistill.models.digests import network_settings, weights_digest
from diffdistill.models.hub import open_pipeline
from diffdistill.models.pipeline_folder import Part, PipelineFolder

from .pretrained import PretrainedCodecNetwork
from .pretrained_settings import Origin, PretrainedSettings

PARTS = {  # by the name of the codec's part: the folder in a pipeline, and the class
    "autoencoder": ("vae", Part(("AutoencoderDC",), "diffusers")),
    "transformer": ("transformer", Part(("SanaTransformer2DModel",), "diffusers")),
}


@dataclass(frozen=True)
class PretrainedSource:
    """Where a pretrained network is.

    Args:
        source: folder or hub id of a diffusers pipeline that has it, or folder of the network alone.
        variant: variant of its weight files, such as fp16; null for the plain files, or for the only variant there is.
    """

    source: str
    variant: str | None = None


def open_pretrained(name: str, where: PretrainedSource) -> tuple[Any, Origin]:
    """Load "autoencoder" or "transformer", frozen and in float32, and say where it came from.

    Raises:
        UserError: there is none at the source, it is of another class, or its files are torn.
    """
    part, wanted = PARTS[name]
    folder = Path(where.source)
    alone = (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()
    if alone:
        found = PipelineFolder(where.source, folder, {}, noun=name, kind=name, wanted_variant=where.variant)
        part = "."
    else:
        found = open_pipeline(where.source, where.variant, only=(part,))
    found.check_variant([part])
    network = found.load(part, wanted)
    source = str(folder.resolve()) if folder.is_dir() else where.source
    return network, Origin(source, where.variant, digest_of(network))


def digest_of(network: Any) -> str:
    """Hash of the settings and weights of a network of diffusers."""
    settings = json.dumps(network_settings(network), sort_keys=True, default=str)
    return hashlib.sha256(f"{settings} {weights_digest(network)}".encode()).hexdigest()[:16]


def open_recorded(name: str, origin: Origin) -> Any:
    """Load a network that a saved codec names.

    Raises:
        UserError: as `open_pretrained`; or it is another network than the codec was trained with.
    """
    network, found = open_pretrained(name, PretrainedSource(origin.source, origin.variant))
    if found.digest != origin.digest:
        raise UserError(
            f"the {name} at {origin.source} has the digest {found.digest}, and the codec was trained with "
            f"{origin.digest}; name the right one in the codec's config.json"
        )
    return network


def pretrained_network(
    autoencoder: PretrainedSource, transformer: PretrainedSource, settings: PretrainedSettings
) -> PretrainedCodecNetwork:
    """A new codec around the two networks, with adapters that change nothing yet.

    Raises:
        UserError: as `open_pretrained`, or the two do not fit each other.
    """
    first, of_first = open_pretrained("autoencoder", autoencoder)
    second, of_second = open_pretrained("transformer", transformer)
    origins = {"autoencoder": of_first, "transformer": of_second}
    return PretrainedCodecNetwork(first, second, settings, origins)
