"""Latents that are kept: the same ones, made once, and made again where the file is no good."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffdistill.models import cached_latents as latents
from diffdistill.models.latents import LatentSpace


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, scaling_factor=0.5).eval()


def of_grey(number: int) -> Tensor:
    return torch.full((3, 3, 8, 8), 40 * number, dtype=torch.uint8)


@pytest.mark.parametrize("kept", [False, True])
def test_they_are_the_encoded_variants(vae, tmp_path: Path, monkeypatch, kept: bool) -> None:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(latents, "WORTH_KEEPING", 1 if kept else 1000)
    asked: list[int] = []

    def variant(number: int) -> Tensor:
        asked.append(number)
        return of_grey(number)

    groups = {"": (3, variant, 2), "red": (3, variant, 1)}
    first = latents.varied_latents(LatentSpace(vae), groups, {"of": "grey"})
    expected = torch.stack([LatentSpace(vae).encode_bytes(of_grey(k)) for k in range(2)], 1)
    assert torch.equal(first[""], expected) and torch.equal(first["red"], expected[:, :1])
    again = latents.varied_latents(LatentSpace(vae), groups, {"of": "grey"})
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert asked == [0, 1, 0] * (1 if kept else 2)
    assert len(list(tmp_path.iterdir())) == (1 if kept else 0)


def test_another_autoencoder_or_set_has_its_own_and_a_torn_file_is_made_again(vae, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIFFDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(latents, "WORTH_KEEPING", 1)
    groups = {"": (3, of_grey, 2)}
    first = latents.varied_latents(LatentSpace(vae), groups, {"of": "grey"})[""]
    (file,) = tmp_path.iterdir()
    latents.varied_latents(LatentSpace(vae), groups, {"of": "other"})
    with torch.no_grad():
        vae.encoder.conv_in.weight.add_(0.1)
    changed = latents.varied_latents(LatentSpace(vae), groups, {"of": "grey"})[""]
    assert len(list(tmp_path.iterdir())) == 3 and not torch.equal(changed, first)
    with torch.no_grad():
        vae.encoder.conv_in.weight.sub_(0.1)
    for torn in (file.read_bytes()[:100], b""):
        file.write_bytes(torn)
        assert torch.allclose(latents.varied_latents(LatentSpace(vae), groups, {"of": "grey"})[""], first, atol=1e-5)
