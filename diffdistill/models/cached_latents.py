"""Latents of many variants of images, which are computed once and kept in the user's cache.

An autoencoder, a set of images and a way to vary them have one file, `latents-HASH.safetensors`. It is put in place by
one rename. A file that is damaged or holds other shapes is made again. Few images have no file. Several processes that
start together each encode the images, at the same time, and the last one's file stays.
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

WORTH_KEEPING = 1000  # images, which take about ten seconds on a CPU


def encoded(latents: LatentSpace, images: Tensor) -> Tensor:
    """Latents (N, C, h, w) of images; if they are many, they are kept in the cache.

    Args:
        latents: the latent space, whose autoencoder encodes on its own device.
        images: uint8 Tensor of shape (N, 3, H, W), on the CPU.
    """
    made_from = {"images": hashlib.sha256(images.contiguous().numpy().data).hexdigest()}
    return varied_latents(latents, {"": (len(images), lambda _: images, 1)}, made_from)[""][:, 0]


def varied_latents(
    latents: LatentSpace, groups: Mapping[str, tuple[int, Callable[[int], Tensor], int]], made_from: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Latents (N, variants, C, h, w) of each group of images.

    Args:
        latents: the latent space, whose autoencoder encodes.
        groups: for the name of a group, N, a function from the number of a variant to its images (uint8 Tensor of shape
            (N, 3, H, W)), and the number of variants.
        made_from: everything that the images and their variants depend on, for the hash of the file.
    """
    settings = network_settings(latents.autoencoder)
    key = json.dumps([weights_digest(latents.autoencoder), settings, dict(made_from)], sort_keys=True, default=str)
    file = user_cache() / f"latents-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    wanted = {name: (n, variants) for name, (n, _, variants) in groups.items()}
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
        for name, (n, variant, variants) in groups.items():
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
