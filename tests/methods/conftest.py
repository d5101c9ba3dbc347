"""The tiny image set, written once, and latents of the same images, encoded once."""

import hashlib
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from tiny_pictures import save_tiny_pictures
from torch import Tensor

from diffdistill.models.digests import network_settings, weights_digest
from diffdistill.models.latents import LatentSpace


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_pictures(tmp_path_factory.mktemp("data") / "pictures"))


@pytest.fixture(scope="session", autouse=True)
def latents_encoded_once() -> Iterator[None]:
    """Building a method on the shipped autoencoder takes a second for latents that many tests share."""
    known: dict[tuple[str, str, str], Tensor] = {}
    encode = LatentSpace.encode_bytes

    def encode_bytes(self: LatentSpace, images: Tensor, batch_size: int = 64) -> Tensor:
        digest = hashlib.sha256(f"{tuple(images.shape)} {batch_size}".encode() + images.contiguous().numpy().tobytes())
        key = (weights_digest(self.autoencoder), str(network_settings(self.autoencoder)), digest.hexdigest())
        if key not in known:
            known[key] = encode(self, images, batch_size)
        return known[key].clone()

    with patch.object(LatentSpace, "encode_bytes", encode_bytes):
        yield
