"""Latents of many variants of images, made once and kept in the user's cache.

One file for an autoencoder, a set of images and a way to vary them: `latents-HASH.safetensors`, written in one
rename. A file that is damaged or of other shapes is made again; of few images there is none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from diffdistill.files import user_cache, write_atomic
from diffdistill.models.digests import network_settings, weights_digest
from diffdistill.models.latents import LatentSpace

WORTH_KEEPING = 5000  # images: about a minute on a processor


def encoded(latents: LatentSpace, images: Tensor) -> Tensor:
    """Latents (N, C, h, w) of images (N, 3, H, W), uint8, kept in the cache where they are many.

    Args:
        latents: of the autoencoder that encodes them, on its device.
        images: on the CPU.
    """
    made_from = {"images": hashlib.sha256(images.numpy().tobytes()).hexdigest()}
    return varied_latents(latents, {"": (len(images), lambda _: images, 1)}, made_from)[""][:, 0]


def varied_latents(
    latents: LatentSpace, pictures: Mapping[str, tuple[int, Callable[[int], Tensor], int]], made_from: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Latents (N, variants, C, h, w) of each group of images.

    Args:
        latents: of the autoencoder that encodes them.
        pictures: by name of the group: N, a function from a variant's number to its images (N, 3, H, W), uint8, and
            the number of variants.
        made_from: what the images and their variants depend on, for the file's hash.
    """
    settings = network_settings(latents.autoencoder)
    key = json.dumps([weights_digest(latents.autoencoder), settings, dict(made_from)], sort_keys=True, default=str)
    file = user_cache() / f"latents-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    wanted = {name: (n, variants) for name, (n, _, variants) in pictures.items()}
    total = sum(n * variants for n, variants in wanted.values())
    kept = total >= WORTH_KEEPING
    try:
        found: dict[str, Tensor] = load_file(file) if kept else {}
        if {name: tuple(each.shape[:2]) for name, each in found.items()} == wanted:
            return found
    except (OSError, SafetensorError):
        pass
    with tqdm(total=total, desc="latents", unit="img", disable=not kept) as bar:
        made = {}
        for name, (n, variant, variants) in pictures.items():
            parts = []
            for number in range(variants):
                parts.append(latents.encode_bytes(variant(number)).cpu())
                bar.update(n)
            made[name] = torch.stack(parts, 1).contiguous()
    try:
        if kept:
            write_atomic(file, save(made))
    except OSError as error:  # a full or read-only disk is no reason not to train
        tqdm.write(f"latents are not kept: {error}")
    return made
