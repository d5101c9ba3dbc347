"""A latent space scales as the pipelines do, keeps the graph, and works in batches without one."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor, nn

from diffdistill.models.latents import LatentSpace


class Identity(nn.Module):
    """An autoencoder that changes nothing, with settings."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, **config: Any) -> None:
        super().__init__()
        defaults: Mapping[str, Any] = {"latent_channels": 3, "block_out_channels": (8, 8)}
        self.config: Any = {**defaults, **config}
        self.config = type("Config", (dict,), {"latent_channels": 3})(self.config)

    def encode(self, x: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x))

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=z)


def small(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "kl":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae: Any = AutoencoderKL(
            latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.3, **blocks
        )
    else:
        widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
        vae = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.4, **widths, **layers)
    return vae.requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scaling_factor": 0.5}, lambda x: 0.5 * x),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, lambda x: 0.5 * (x - 0.25)),
        ({"scaling_factor": None}, lambda x: x),
        (
            {"scaling_factor": 0.5, "latents_mean": (0.1, 0.2, 0.3), "latents_std": (1.0, 2.0, 4.0)},
            lambda x: (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) * 0.5
            / torch.tensor([1.0, 2.0, 4.0])[:, None, None],
        ),
    ],
)  # fmt: skip
def test_scaling_is_that_of_the_settings(config: dict[str, Any], expected: Any) -> None:
    space, x = LatentSpace(Identity(**config)), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(space.encode(x), expected(x))
    torch.testing.assert_close(space.decode(space.encode(x)), x)


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_batches_are_the_autoencoders_own_arithmetic(kind: str) -> None:
    vae, space = small(kind), LatentSpace(small(kind))
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = vae.encode(images.float() / 127.5 - 1)
    z = (found.latent_dist.mode() if kind == "kl" else found.latent) * vae.config.scaling_factor
    assert torch.equal(space.encode_bytes(images), z)
    torch.testing.assert_close(space.encode_bytes(images, 2), z)
    expected = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1) / 2 + 0.5
    assert torch.equal(space.images(z), expected) and not space.images(z).requires_grad
    assert (space.channels, space.factor, space.shape(16, 8)) == (4, 2, (4, 8, 4))
    with pytest.raises(ValueError, match="15 x 8 pixels; both sides must be multiples of 2"):
        space.shape(15, 8)


@pytest.mark.parametrize("kind", ["kl", "dc"])
def test_encode_and_decode_keep_the_graph(kind: str) -> None:
    """The derivative along a direction is the difference quotient (the norms of either are float32)."""
    space = LatentSpace(small(kind).double())
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 2 - 1
    z, step = space.encode(x), 1e-3
    for call, at in ((space.encode, x), (lambda v: space.autoencoder.decode(space._unscaled(v)).sample, z)):
        direction = torch.randn_like(at)
        leaf = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).square().sum(), leaf)
        ahead, behind = (call(at + sign * step * direction).square().sum() for sign in (1, -1))
        torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=5e-3, atol=1e-4)
    assert space.decode(z.requires_grad_()).requires_grad


def test_a_half_precision_autoencoder_takes_and_gives_float32() -> None:
    space, whole = LatentSpace(small("kl").bfloat16()), LatentSpace(small("kl"))
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    z = space.encode(x)
    assert z.dtype == space.decode(z).dtype == torch.float32
    torch.testing.assert_close(z, whole.encode(x), rtol=0.05, atol=0.02)
